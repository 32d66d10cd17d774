"""Operations: the actions that Kafka's access lists allow on a topic or a group."""

from typing import Literal

Operation = Literal["Read", "Write", "Create", "Delete", "Describe", "DescribeConfigs"]
