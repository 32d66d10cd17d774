"""For other people's programs: clients of a Treasure Map, without any of the worker's code."""

from client.feed import FeedCell, FollowFailedError
from client.follow import Follower, Unreadable, follow
from client.query import Answer, Cell, Page, QueryClient, QueryFailedError

__all__ = [
    "Answer", "Cell", "FeedCell", "FollowFailedError", "Follower", "Page", "QueryClient",
    "QueryFailedError", "Unreadable", "follow",
]  # fmt: skip
