"""How bin photos and their labels lie on disk: bin folders, or the Amazon Bin Image Dataset's own layout."""

from bincounter.data.layouts.abid import Abid
from bincounter.data.layouts.arrangement import arrange
from bincounter.data.layouts.base import PHOTO_SUFFIXES, Layout
from bincounter.data.layouts.detection import Detected, detect
from bincounter.data.layouts.folders import Folders
from bincounter.data.layouts.id_lists import ids_from
from bincounter.data.layouts.walking import CACHE_TAG, Found, Refused, walk

__all__ = [
    "CACHE_TAG",
    "PHOTO_SUFFIXES",
    "Abid",
    "Detected",
    "Folders",
    "Found",
    "Layout",
    "Refused",
    "arrange",
    "detect",
    "ids_from",
    "walk",
]
