"""The group as of the last assignment: the partitions of each worker, and its URL."""

from __future__ import annotations

from collections.abc import Sequence

from app.kafka.assignor import Share, pairs
from tables.model.topic_partition import TopicPartition


class GroupMap:
    """The assignor's map, which comes with every assignment, to every member.

    Attributes:
        urls: the endpoint of each partition's owner.
        nodes: the endpoint of each node.
        refused: why a member must go, by its boot.
        strangers: why members are no workers, by the node and URL that each names.
        twins: the nodes of each endpoint that several of them name.
    """

    def __init__(self) -> None:
        self.urls: dict[TopicPartition, str] = {}
        self.nodes: dict[str, str] = {}
        self.refused: dict[int, str] = {}
        self.strangers: dict[tuple[str, str], str] = {}
        self.twins: dict[str, list[str]] = {}

    def take(self, shares: Sequence[Share]) -> None:
        """Take a new map."""
        self.urls = {tp: share.url for share in shares for tp in pairs(share.partitions)}
        self.refused = {share.boot: share.refused for share in shares if share.refused}
        self.strangers = {
            (share.node, share.url): share.refused
            for share in shares
            if share.refused and not share.boot
        }
        believed = [share for share in shares if share.boot or not share.refused]
        self.nodes = {share.node: share.url for share in believed}
        at: dict[str, list[str]] = {}
        for share in shares:
            if share.url and not share.refused:
                at.setdefault(share.url, []).append(share.node)
        self.twins = {url: sorted(nodes) for url, nodes in at.items() if len(nodes) > 1}
