"""For other people's programs: clients of a Treasure Map, without any of the worker's code."""

from client.query import Answer, Cell, Page, QueryClient, QueryFailedError

__all__ = ["Answer", "Cell", "Page", "QueryClient", "QueryFailedError"]
