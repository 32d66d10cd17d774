"""A rebalance while a chunk is in an agent's hand: transport, owners and journal as they are."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from agents.ingest import Ingest
from agents.partition.owners import PartitionManager
from app.cluster.topics import apply_topics
from app.kafka.log import Headers, KafkaLog
from app.mapfile.load import load_map
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.errors import OutcomeUnknownError
from tables.model.limits import RECORD_BYTES_MAX
from tests.support import worker_process
from tests.support.common import HOUR_MS, flight
from tests.support.transport_harness import Memory, TransportHarness, until


class SlowLetters(KafkaLog):
    """A log whose brokers take letters late, while ``shut``."""

    def __init__(self, brokers: str, **options: Any) -> None:
        super().__init__(brokers, RECORD_BYTES_MAX, **options)
        self.open = asyncio.Event()
        self.open.set()
        self.waits = asyncio.Event()

    async def append(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        headers: Headers,
        *,
        key: bytes | None = None,
    ) -> int:
        """Append, when letters may pass."""
        if topic.endswith(".late") and not self.open.is_set():
            self.waits.set()
            await self.open.wait()
        return await super().append(topic, partition, value, headers, key=key)


class Scene:
    """One partition with everything behind it, and another member that may join its group."""

    def __init__(self, brokers: str, folder: Path) -> None:
        name, group = f"t{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
        file = folder / "map.toml"
        one = worker_process.MAP.replace("partitions = 2", "partitions = 1")
        file.write_text(one.format(name=name))
        self.brokers, self.map, self.raw = brokers, load_map(file), f"{name}.raw"
        self.log, self.archive = SlowLetters(brokers), EmbeddedArchive(folder / "archive")
        self.failures: list[BaseException] = []
        self.owners = PartitionManager(
            self.map,
            self.log,
            self.archive,
            folder / "state",
            failed=self.failures.append,
            fenced=self._fenced,
            misplaced=self._misplaced,
        )
        self.bench = TransportHarness(
            brokers, {"ingest": self.raw}, self.owners, group=group, node="a"
        )
        self.bench._handle = Ingest(self.owners).handle  # type: ignore[method-assign]
        self.other = TransportHarness(
            brokers, {"ingest": self.raw}, Memory(), group=group, node="b"
        )

    def _fenced(self, topic: str, partition: int, reason: str) -> None:
        self.bench.transport.restart(topic, partition, reason)

    def _misplaced(self, topic: str, partition: int, position: int) -> None:
        self.bench.transport.realign(topic, partition, position)

    async def start(self) -> None:
        """Make the topics and start all but the other member."""
        await apply_topics(self.brokers, self.map)
        await self.log.start()
        await self.archive.open(self.map)
        await self.bench.transport.start()

    async def close(self) -> None:
        """End all of it."""
        await asyncio.gather(self.bench.close(), self.other.close())
        await self.archive.close()
        await self.log.stop()

    async def applied(self, position: int) -> None:
        """Wait until the owner stands there."""

        def there() -> bool:
            owner = self.owners.get(self.raw, 0)
            return owner is not None and owner.position == position

        await until(there, f"position {position}")


@pytest.mark.parametrize("moves", ["rebalance", "fenced"])
async def test_a_chunk_in_hand_while_its_partition_is_restored_stops_nothing(
    brokers: str, tmp_path: Path, moves: str
) -> None:
    """The next owner begins at the chunk's start, and folds all that comes, each event once."""
    scene = Scene(brokers, tmp_path)
    transport = scene.bench.transport
    try:
        await scene.start()
        async with AIOKafkaProducer(bootstrap_servers=brokers) as producer:
            await producer.send_and_wait(scene.raw, flight(90 * HOUR_MS), partition=0)
            await scene.applied(1)
            scene.log.open.clear()
            await producer.send_and_wait(scene.raw, flight(0), partition=0)
            await scene.log.waits.wait()
            restores = transport.statistics().restores
            if moves == "rebalance":
                await scene.other.transport.start()
            else:
                for held in list(scene.owners._held.values()):
                    await scene.owners._lost(held, OutcomeUnknownError("lost"))
            await until(lambda: transport.statistics().restores > restores, "the next owner")
            await scene.applied(1)
            await producer.send_and_wait(scene.raw, flight(90 * HOUR_MS), partition=0)
            scene.log.open.set()
            await scene.applied(3)
            for _ in range(3):
                await producer.send_and_wait(scene.raw, flight(90 * HOUR_MS), partition=0)
            await scene.applied(6)
        assert scene.owners.dropped["stale"] == 1
        assert not scene.failures
    finally:
        await scene.close()
