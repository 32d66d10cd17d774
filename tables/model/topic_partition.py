"""The name of a partition of a topic."""

TopicPartition = tuple[str, int]
