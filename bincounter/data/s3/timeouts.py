"""How long a server may take, whichever client asks it."""

CONNECTING = 10
"""Seconds that a connection may take."""
SILENCE = 30
"""Seconds without a byte, after which a request counts as lost."""
