"""The name of a partition of a topic, and sentences' words for several."""

from collections.abc import Sequence

TopicPartition = tuple[str, int]

NAMED_MAX = 3
"""The partitions that a sentence names; it gives the number of the others."""


def named(partitions: Sequence[TopicPartition]) -> str:
    """Return the first partitions of a list by name, and how many more there are."""
    shown = ", ".join(f"{topic}[{partition}]" for topic, partition in partitions[:NAMED_MAX])
    more = len(partitions) - NAMED_MAX
    return f"{shown} and {more} more" if more > 0 else shown
