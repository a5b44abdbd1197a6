"""How bin photos and their labels lie on disk: bin folders, the Amazon Bin Image Dataset's own layout, or shards."""

from bincounter.data.layouts.abid import Abid
from bincounter.data.layouts.arrangement import arrange
from bincounter.data.layouts.base import PHOTO_SUFFIXES, KnownLayout, Layout
from bincounter.data.layouts.detection import Detected, detect
from bincounter.data.layouts.folders import Folders
from bincounter.data.layouts.id_lists import ids_from
from bincounter.data.layouts.walking import CACHE_TAG, Found, Refused, walk
from bincounter.data.shards.layout import Shards

__all__ = [
    "CACHE_TAG",
    "PHOTO_SUFFIXES",
    "Abid",
    "Detected",
    "Folders",
    "Found",
    "KnownLayout",
    "Layout",
    "Refused",
    "Shards",
    "arrange",
    "detect",
    "ids_from",
    "walk",
]
