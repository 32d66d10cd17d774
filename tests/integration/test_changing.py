"""The commands of docs/changing.md, and answers after them, against a recomputation."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from app.cluster.topics import topics_found
from tests import ROOT
from tests.support.pages import Shell, blocks
from tests.support.servers import free_ports
from tests.support.waiting import until
from treasure_map import QueryClient
from treasure_map.query import QueryFailedError

PAGE = "docs/changing.md"
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
BEGIN_MS = 1_700_006_400_000
EVENTS = 400
SECONDS_MAX = 60
TYPES = ("order.placed", "order.paid", "visit")

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="the page waits with curl")

Rows = dict[tuple[str, int], dict[str, Any]]
Event = dict[str, Any]


class Bench:
    """A broker with the topic of the page, and a shell whose commands use it.

    Attributes:
        events: all that have been written, in the order of their times.
    """

    def __init__(self, brokers: str, folder: Path) -> None:
        self.brokers = brokers
        self.first, self.second = free_ports(2)
        self.folder = folder
        self.events: list[Event] = []
        self._rng = random.Random(4711)
        self._at_ms = BEGIN_MS
        settings = {"brokers": brokers, "disk_free_bytes_min": "1"}
        ports = {
            "6066": str(self.first), "6067": str(self.second),
            "worker --map shop": f"worker --web-port {self.first} --map shop",
        }  # fmt: skip
        self.shell = Shell(folder, settings, ports)

    async def section(self, heading: str, count: int | None = None) -> None:
        """Run the first blocks of a section, all by default."""
        for block in blocks(PAGE, heading)[:count]:
            await asyncio.to_thread(self.shell.run, block)

    async def produce(self, count: int = EVENTS) -> None:
        """Write further events, of two days, keyed as the map says."""
        async with AIOKafkaProducer(bootstrap_servers=self.brokers, linger_ms=20) as producer:
            for _ in range(count):
                self._at_ms += self._rng.randrange(2 * DAY_MS // EVENTS)
                event: Event = {
                    "at": self._at_ms, "type": self._rng.choice(TYPES),
                    "store": self._rng.choice("ABCD"), "item": self._rng.choice(["x", "y", "zé"]),
                    "cents": self._rng.randrange(-100, 10_000),
                }  # fmt: skip
                self.events.append(event)
                partition = zlib.crc32(event["store"].encode()) % 2
                await producer.send("orders", orjson.dumps(event), partition=partition)

    def want(
        self, key: str, window_ms: int, *measures: str, types: str = "order.", since_ms: int = 0
    ) -> Rows:
        """Recompute the rows of a layer from all events, from a window start on."""
        groups: dict[tuple[str, int], list[int]] = defaultdict(list)
        for event in self.events:
            start = event["at"] // window_ms * window_ms
            if event["type"].startswith(types) and start >= since_ms:
                groups[event[key], start].append(event["cents"])
        made: dict[str, Callable[[list[int]], int]] = {
            "count": len, "sum_cents": sum, "max_cents": max,
        }  # fmt: skip
        return {
            group: {name: made[name](values) for name in measures}
            for group, values in groups.items()
        }

    def answered(self, port: int, layer: str, since_ms: int) -> Rows:
        """Return the rows that a worker answers."""
        with QueryClient(f"http://127.0.0.1:{port}") as client:
            answer = client.cells(layer, {}, since_ms, self._at_ms + 1)
        assert not answer.partial
        return {
            (str(*cell.key.values()), cell.window_start): dict(cell.measures)
            for cell in answer.cells
        }

    async def comes_to(self, port: int, layer: str, want: Rows, since_ms: int = BEGIN_MS) -> None:
        """Wait until a worker answers exactly these rows."""
        assert want
        found: Rows = {}

        async def is_right() -> bool:
            nonlocal found
            found = await asyncio.to_thread(self.answered, port, layer, since_ms - DAY_MS)
            return found == want

        try:
            await until(is_right, SECONDS_MAX)
        except TimeoutError:
            assert found == want
            raise

    async def is_right(self) -> None:
        """Wait until the map of the page answers all events."""
        want = self.want("store", HOUR_MS, "count", "sum_cents")
        await self.comes_to(self.first, "store_hour", want)

    async def own_topics(self, name: str) -> list[str]:
        """Return the topics that a map has made."""
        return [one for one in await topics_found(self.brokers) if one.startswith(f"{name}.")]


@pytest.fixture
async def bench(broker: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """Give the page's example with events, old and new ones, before any change."""
    bench = Bench(broker, tmp_path)
    with bench.shell:
        await bench.section("The example")
        await bench.produce()
        await bench.is_right()
        yield bench


async def test_a_layer_is_added_with_its_history(bench: Bench) -> None:
    """The first map serves meanwhile, and new events are in both; then it leaves nothing."""
    await bench.section("Add a layer with history", 2)
    await bench.produce()
    await bench.is_right()
    want = bench.want("item", DAY_MS, "count", "max_cents")
    await bench.comes_to(bench.second, "item_day", want)
    hours = bench.want("store", HOUR_MS, "count", "sum_cents")
    await bench.comes_to(bench.second, "store_hour", hours)
    for block in blocks(PAGE, "Add a layer with history")[2:]:
        await asyncio.to_thread(bench.shell.run, block)
    assert await bench.own_topics("shop") == []
    await bench.produce()
    await bench.comes_to(bench.second, "item_day", bench.want("item", DAY_MS, "count", "max_cents"))


@pytest.mark.slow
async def test_a_window_changes_from_now_on(bench: Bench) -> None:
    """The new layer has exactly the windows from which on it is whole, the old one all of them."""
    await bench.section("Change a window")
    await bench.produce()
    await bench.is_right()
    quarter_ms = HOUR_MS // 4
    with QueryClient(f"http://127.0.0.1:{bench.first}") as client:
        (layer,) = [one for one in client.layers() if one.name == "store_quarter"]
    whole = {partition: times["cells"] for partition, times in layer.whole_from.items()}
    assert all(whole.values())
    known_ms = max(time for time in whole.values() if time is not None)
    since_ms = -(-known_ms // quarter_ms) * quarter_ms
    every = bench.want("store", quarter_ms, "count", "sum_cents", since_ms=since_ms)
    assert len(every) > 10
    found = await asyncio.to_thread(bench.answered, bench.first, "store_quarter", since_ms)
    assert found == every
    with pytest.raises(
        QueryFailedError, match=r"the map has had it only since \d+ .*; want a range from"
    ):
        await asyncio.to_thread(bench.answered, bench.first, "store_quarter", BEGIN_MS)


@pytest.mark.slow
async def test_a_map_is_renamed(bench: Bench) -> None:
    """The new name has all of it, and the old one is gone."""
    await bench.section("Rename a map")
    await bench.produce()
    want = bench.want("store", HOUR_MS, "count", "sum_cents")
    await bench.comes_to(bench.second, "store_hour", want)
    assert await bench.own_topics("shop") == []
    assert len(await bench.own_topics("bakery")) == 3


@pytest.mark.slow
async def test_two_maps_share_a_kafka(bench: Bench) -> None:
    """Each answers the same events by its own rules; one ends, and the other stays as it is."""
    first, last = blocks(PAGE, "Two maps on one Kafka")
    await asyncio.to_thread(bench.shell.run, first)
    await bench.produce()
    await bench.is_right()
    want = bench.want("item", HOUR_MS, "count", "sum_cents", types="order.placed")
    await bench.comes_to(bench.second, "item_hour", want)
    await asyncio.to_thread(bench.shell.run, last)
    await bench.produce()
    await bench.is_right()
    assert await bench.own_topics("items") == []
    assert not (bench.folder / "var" / "items-state" / "items").exists()


@pytest.mark.slow
async def test_a_map_starts_over(bench: Bench) -> None:
    """All rows are computed anew, by another archive than before."""
    log = bench.folder / "shop.log"
    before = re.findall(r"archive in (\S+)", log.read_text())
    await bench.section("Start over")
    await bench.is_right()
    await bench.produce()
    await bench.is_right()
    assert before == re.findall(r"archive in (\S+)", log.read_text())


def test_each_section_with_commands_is_tried() -> None:
    """A section that is added to the page gets a test."""
    page = (ROOT / PAGE).read_text("utf-8")
    tried = (ROOT / "tests" / "integration" / "test_changing.py").read_text("utf-8")
    for heading in re.findall(r"^## (.*)$", page, re.MULTILINE):
        assert not blocks(PAGE, heading) or f'"{heading}"' in tried, heading
