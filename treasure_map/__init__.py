"""The library for other people's programs: it asks a Treasure Map, and follows its feeds.

It holds none of the worker's code. The client for asyncio is in :mod:`treasure_map.query_async`: it
alone needs aiohttp.
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
from treasure_map.feed import FeedCell, FollowFailedError
from treasure_map.follow import Follower, Unreadable, follow
from treasure_map.query import QueryClient
from treasure_map.requests import Range

__all__ = [
    "Answer", "Cell", "FamilyAnswer", "FamilyPage", "FeedCell", "FollowFailedError", "Follower",
    "LiveCell", "Page", "QueryClient", "QueryFailedError", "Range", "Row", "Unreadable", "follow",
]  # fmt: skip
