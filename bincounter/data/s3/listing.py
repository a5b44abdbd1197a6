"""A listing of a bucket, taken in several parts at once where it is known how to cut it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from bincounter.data.s3.catalogue import Catalogue
from bincounter.data.s3.client import Bucket

_PARTS = 8  # at a time


def list_into(catalogue: Catalogue, bucket: Bucket, prefix: str) -> None:
    """List all objects below a prefix.

    A server hands out 1,000 keys a request, each only after the one before. Where a former listing tells which keys
    there are, they are cut into parts, and the parts listed at the same time.

    Args:
        catalogue: takes the objects.
        bucket: that is listed.
        prefix: empty, or a folder with its slash.

    Raises:
        DataError: the address or the credentials are wrong.
        ResourceError: the network or the server gave out.
    """
    catalogue.list_anew()
    cuts = catalogue.boundaries(prefix, _PARTS) if bucket.in_order else []
    broken_off = threading.Event()

    def list_part(after: str, until: str) -> None:
        for page in bucket.pages(prefix, after=after):
            inside = [item for item in page if not until or item.key <= until]
            catalogue.add(inside)
            if len(inside) < len(page) or broken_off.is_set():
                return

    with ThreadPoolExecutor(len(cuts) + 1) as pool:
        parts = [pool.submit(list_part, after, until) for after, until in pairwise(["", *cuts, ""])]
        try:
            for part in parts:
                part.result()
        finally:
            broken_off.set()
