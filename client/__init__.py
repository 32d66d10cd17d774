"""For other people's programs: clients of a Treasure Map, without any of the worker's code.

The client for asyncio is in :mod:`client.query_async`: it alone needs aiohttp.
"""

from client.answers import (
    Answer,
    Cell,
    FamilyAnswer,
    FamilyPage,
    LiveCell,
    Page,
    QueryFailedError,
    Row,
)
from client.feed import FeedCell, FollowFailedError
from client.follow import Follower, Unreadable, follow
from client.query import QueryClient
from client.requests import Range

__all__ = [
    "Answer", "Cell", "FamilyAnswer", "FamilyPage", "FeedCell", "FollowFailedError", "Follower",
    "LiveCell", "Page", "QueryClient", "QueryFailedError", "Range", "Row", "Unreadable", "follow",
]  # fmt: skip
