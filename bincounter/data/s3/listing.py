"""A listing of a bucket, taken in several parts at once where it is known how to cut it."""

import threading
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from bincounter.data.s3.catalogue import Catalogue
from bincounter.data.s3.client import Bucket
from bincounter.data.s3.threads import for_each

_PARTS = 8  # at a time


def list_into(catalogue: Catalogue, bucket: Bucket, prefix: str, *, meanwhile: Callable[[], None]) -> None:
    """List all objects below a prefix.

    A server hands out 1,000 keys a request, each only after the one before. Where a former listing tells which keys
    there are, they are cut into parts, and the parts listed at the same time.

    Args:
        catalogue: takes the objects.
        bucket: that is listed.
        prefix: empty, or a folder with its slash.
        meanwhile: something else to do while the server is waited for.

    Raises:
        DataError: the address or the credentials are wrong.
        ResourceError: the network or the server gave out.
    """
    catalogue.list_anew()
    cuts = catalogue.boundaries(prefix, _PARTS) if bucket.in_order else []
    given_up = threading.Event()

    def list_part(after: str, until: str) -> None:
        for page in bucket.pages(prefix, after=after):
            inside = [item for item in page if not until or item.key <= until]
            catalogue.add(inside)
            if len(inside) < len(page) or given_up.is_set():
                return

    tasks: list[Callable[[], None]] = [partial(list_part, *ends) for ends in pairwise(["", *cuts, ""])]
    for_each([*tasks, meanwhile], lambda task: task(), threads=len(tasks) + 1, given_up=given_up)
