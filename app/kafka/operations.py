"""Operations: what Kafka's access lists allow of a topic or a group."""

from typing import Literal

Operation = Literal["Read", "Write", "Create", "Delete", "Describe", "DescribeConfigs"]
