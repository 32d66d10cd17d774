"""A worker comes to exactly the ledger, and the letters, that a load's manifest says."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import aiokafka
import pytest

from app.load.plan import MAP_FILE
from tests.support import manifests
from tests.support.cluster import Cluster
from tests.support.waiting import until


async def letters(brokers: str, topic: str, partitions: int) -> Counter[str]:
    """Return, by reason, how many events and whole records stand in a side topic."""
    async with aiokafka.AIOKafkaConsumer(
        bootstrap_servers=brokers, auto_offset_reset="earliest", max_partition_fetch_bytes=1 << 22
    ) as consumer:
        places = [aiokafka.TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(places)
        # The embedded broker lists as end the offset of the last batch's first record.
        ends = await consumer.end_offsets(places)
        counts: Counter[str] = Counter()
        while any([await consumer.position(place) < ends[place] for place in places]):
            for records in (await consumer.getmany(timeout_ms=1_000)).values():
                for record in records:
                    headers = dict(record.headers)
                    counts[headers["reason"].decode()] += int(headers["events"]) or 1
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("form", ["arrow", "mixed"])
async def test_a_worker_comes_to_the_ledger_of_the_manifest(
    broker: str, tmp_path: Path, form: str
) -> None:
    """Two of a hundred events bad or repeats, three late, over ten minutes; all forms mixed."""
    map_file = tmp_path / "map.toml"
    map_file.write_text(
        MAP_FILE.read_text().replace('type = "type"\n', 'type = "type"\nid = "id"\n')
    )
    with Cluster(broker, tmp_path, map_file=map_file, archive="embedded") as cluster:
        worker = cluster.add()
        path = tmp_path / "manifest.json"
        await asyncio.to_thread(
            cluster.run, "generate", "--map", str(map_file), "--brokers", broker,
            "--manifest", str(path), "--rate", "10000", "--seconds", "2",
            "--speed", "300", "--bad", "0.02", "--late", "0.03", "--duplicates", "0.02",
            "--format", form, "--batch", "100", "--processes", "2",
        )  # fmt: skip
        manifest = json.loads(path.read_bytes())

        async def applied() -> bool:
            ledger = await asyncio.to_thread(worker.get, "ledger")
            return ledger is not None and manifests.is_applied(manifest, [ledger])

        await until(applied, 90)
        assert manifests.differences(manifest, await cluster.ledgers()) == []
        dead = await letters(broker, "shop.dead", 8)
        assert dead == manifest["dead_letters"]
        late = await letters(broker, "shop.late", 8)
        assert late["late"] == sum(one["too_late"] for one in manifest["layers"].values())
        assert late["late"] > 0
        assert manifest["ledger"]["events.duplicate"] > 100
        assert sum(dead.values()) == pytest.approx(400, rel=0.3)
        assert worker.stop() == 0
