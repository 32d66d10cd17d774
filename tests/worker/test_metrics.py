"""Metrics: each is documented, each documented one is there, and their values are true."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.health.watch import Progress, Watch
from app.host.floods import FloodFilter
from app.host.reloads import Reloads
from app.kafka.assignor import GroupMap, Member
from app.kafka.lane import Lane
from app.kafka.membership import Membership, Strangers
from app.kafka.statistics import Statistics
from app.kafka.transport import Transport
from app.kafka.transport_options import TransportOptions
from app.peers.remote_owners import Peers
from app.runtime.metrics import PREFIX, Metrics
from app.runtime.worker_status import WorkerStatus
from app.web.server import Counts
from tables.archive.cache import ArchiveCache
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import CellRange
from tables.model.cost import QueryCost
from tables.model.ledger import EVENT_COLUMNS, LAYER_COLUMNS, RECORD_COLUMNS
from tests import ROOT
from tests.support.common import (
    HOUR_MS,
    NO_PRESSURE,
    MemoryLog,
    dataclasses_replace,
    flight,
    small_map,
)
from tests.support.local_worker import RAW, LocalWorker, fill
from treasure_map.version import version

_SOURCE = small_map().sources[0]
_FIELDS = (*_SOURCE.fields[:2], dataclasses_replace(_SOURCE.field("delay"), null_on_error=True))
MAP = dataclasses_replace(small_map(), sources=(dataclasses_replace(_SOURCE, fields=_FIELDS),))
"""A wrong delay becomes null."""


class StandingTransport:
    """The part of a transport that metrics ask."""

    def __init__(self) -> None:
        options = TransportOptions(brokers="", group="g", node="n1", boot=1)
        member = Member("n1", 1, "", 1, {}, {})
        self.membership = Membership(options, GroupMap(), lambda: member, lambda _: None)
        self.membership.strangers = Strangers(2, {})

    def statistics(self) -> Statistics:
        """Return counts that differ."""
        return Statistics(generation=1, ready=3, restoring=1, chunks=5, records=6, restarts=7)

    def lag_records(self) -> dict[tuple[str, int], int | None]:
        """Return one lag that is known and one that is not."""
        return {(RAW, 0): 12, (RAW, 1): None}

    def positions(self) -> dict[tuple[str, int], int]:
        """Return nothing that was handed over."""
        return {}


@pytest.fixture
async def samples(tmp_path: Path) -> dict[tuple[str, ...], float]:
    """Return the metrics of a worker that has read everything, by name and labels' values."""
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(MAP)
    log = MemoryLog()
    fill(log, 3)
    log.put(RAW, 0, b"no JSON")
    log.put(RAW, 0, flight(0).replace(b'"delay":', b'"delay":"late", "was":'))
    house = LocalWorker(log, archive, tmp_path / "state", MAP)
    await house.restore()
    await house.settle()
    transport = cast("Transport", StandingTransport())
    view = WorkerStatus(MAP, archive, house.owners, transport, NO_PRESSURE, readiness=list)
    lane = Lane("ingest", frozenset(), house.ingest.handle, lambda _: None)
    peers = Peers(MAP, view.local, dict, own_url="")
    cache = ArchiveCache(archive, 1 << 20)
    for _ in range(3):
        await cache.read(MAP.layer("hour"), CellRange(0, HOUR_MS), final=True, cost=QueryCost())
    watch = Watch(Progress(60, lambda *_: None), [], FloodFilter(), house.failures.append)
    reloads = Reloads()
    reloads.add("tokens", [], lambda: None)
    text = Metrics(
        view, transport, NO_PRESSURE, watch, lanes=[lane], peers=peers, cache=cache,
        reloads=reloads, is_insecure=True, connections=Counts(),
    ).text()  # fmt: skip
    await house.kill()
    await archive.close()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_metrics_say_what_queries_cost(samples: dict[tuple[str, ...], float]) -> None:
    """One range was read, and remembered twice."""
    assert samples[f"{PREFIX}query_cache_total", "hit"] == 2
    assert samples[f"{PREFIX}query_cache_total", "miss"] == 1
    assert samples[f"{PREFIX}query_cache_entries",] == 1
    assert samples[f"{PREFIX}query_cache_bytes",] > 0
    assert samples[f"{PREFIX}worker_asks_total",] == 0


def test_metrics_say_what_the_ledger_says(samples: dict[tuple[str, ...], float]) -> None:
    """Labels stand in the order of their names: column, partition, topic."""
    records = {c: samples[f"{PREFIX}records_total", c, "0", RAW] for c in RECORD_COLUMNS}
    assert sum(records.values()) == samples[f"{PREFIX}position", "0", RAW]
    assert (records["heartbeat"], records["unreadable"]) == (1, 0)
    events = {c: samples[f"{PREFIX}events_total", c, "0", RAW] for c in EVENT_COLUMNS}
    assert events["malformed"] == 1
    assert samples[f"{PREFIX}refused_total", "malformed", "0", "json", RAW] == 1
    assert samples[f"{PREFIX}nulled_values_total", "delay", "0", "flights"] == 1
    hour = {c: samples[f"{PREFIX}layer_events_total", c, "hour", "0"] for c in LAYER_COLUMNS}
    assert sum(hour.values()) == events["classified"] == records["with_events"] - 1
    assert samples[f"{PREFIX}archived_rows_total", "hour"] > 0
    assert samples[f"{PREFIX}lag_records", "0", RAW] == 12
    assert (f"{PREFIX}lag_records", "1", RAW) not in samples
    assert samples[f"{PREFIX}partitions", "restoring"] == 1
    assert samples[f"{PREFIX}fenced_total",] == 7
    assert samples[f"{PREFIX}build_info", platform.python_version(), version()] == 1
    assert samples[f"{PREFIX}group_strangers",] == 2
    assert samples[f"{PREFIX}watermark_seconds", "hour"] == 10 * 86_400


def test_every_metric_is_documented(samples: dict[tuple[str, ...], float]) -> None:
    """The table of the operating page names all of them and no other."""
    page = (ROOT / "docs" / "OPERATING.md").read_text()
    table = page.partition("## Metrics")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == {name.removeprefix(PREFIX) for name, *_ in samples if name.startswith(PREFIX)}
    assert "process_resident_memory_bytes" in {name for name, *_ in samples}
