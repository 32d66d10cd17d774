"""The library for other people's programs: it asks a Treasure Map, and follows its feeds.

It uses none of the worker's code, and needs msgspec alone. A part that needs more is an extra of
the distribution, and says so when it is missing:

* ``async``: the client for asyncio, :class:`treasure_map.query_async.AsyncQueryClient`;
* ``feed``: :func:`follow`;
* ``frame``: answers as polars frames, and feeds of Arrow.
"""

from treasure_map.answers import (
    Answer,
    Cell,
    FamilyAnswer,
    FamilyPage,
    LiveCell,
    Page,
    QueryFailedError,
    Row,
)
from treasure_map.extras import MissingExtraError
from treasure_map.feed import FeedCell, FollowFailedError
from treasure_map.follow import Follower, Unreadable, follow
from treasure_map.query import QueryClient
from treasure_map.requests import Range
from treasure_map.version import version as _version

__all__ = [
    "Answer", "Cell", "FamilyAnswer", "FamilyPage", "FeedCell", "FollowFailedError", "Follower",
    "LiveCell", "MissingExtraError", "Page", "QueryClient", "QueryFailedError", "Range", "Row",
    "Unreadable", "follow",
]  # fmt: skip

__version__: str


def __getattr__(name: str) -> str:
    """Return ``__version__``; it is read when it is asked for."""
    if name == "__version__":
        return _version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
