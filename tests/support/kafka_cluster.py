"""Three Kafka brokers as child processes, so that tests can lose one."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from tests.support.servers import KafkaServer

NODES = 3


class KafkaCluster:
    """Brokers and controllers in one process each; internal topics have a copy on every node.

    Attributes:
        nodes: the servers, each of which may be killed and spawned again.
        bootstrap: ``host:port`` of all of them for clients.
    """

    def __init__(self, folder: Path) -> None:
        self.nodes = [KafkaServer(folder / f"kafka{number}") for number in range(NODES)]
        voters = ",".join(
            f"{number}@{node.listeners['CONTROLLER']}" for number, node in enumerate(self.nodes, 1)
        )
        for number, node in enumerate(self.nodes, 1):
            node.cluster = self.nodes[0].cluster
            node.configure(
                {
                    "node.id": str(number),
                    "controller.quorum.voters": voters,
                    "offsets.topic.replication.factor": str(NODES),
                    "transaction.state.log.replication.factor": str(NODES),
                    "transaction.state.log.min.isr": str(NODES - 1),
                    "min.insync.replicas": str(NODES - 1),
                }
            )
        self.bootstrap = ",".join(node.bootstrap for node in self.nodes)

    def __enter__(self) -> Self:
        """Start all: a quorum of controllers must be there before any of them serves."""
        for node in self.nodes:
            node.spawn()
        for node in self.nodes:
            node.wait_until_serving()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all."""
        for node in self.nodes:
            node.stop()
