"""Hundreds of thousands of photos in a few hundred files: tar shards, as WebDataset reads them, and their index.

A folder of shards holds ``bins-000000.tar``, ``bins-000001.tar``, ... In each of them every photo has three members:
``<number>.jpg`` (or ``.png``, ``.webp``: the bytes as they were), ``<number>.cls`` (its count) and ``<number>.json``
(``{"id", "count", "group", "split"}``). ``index.csv`` holds for each photo the results of a scan, and the
shard, offset and size of its bytes, for random access; ``quarantine.csv`` lists rejected inputs.
"""
