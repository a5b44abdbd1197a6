"""Endpoints that really serve: the archive from S3, behind a Ray Serve that is started as AWS's image starts it.

What stands for an instance is one process tree on this machine, however many instances are asked for. The image's
adapter is the control plane itself: ``/ping`` is Ray's health check, ``/invocations`` is passed on to ``/``.
"""
