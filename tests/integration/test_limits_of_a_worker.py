"""A worker process that is stuck, stopped for a while, or cannot get rid of its rows."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.host.watchdog import EXIT_CODE
from tests.support import faulty_worker, servers
from tests.support.common import HOUR_MS, flight
from tests.support.waiting import until
from tests.support.worker_process import SECONDS_MAX, Process, apply

WORKER = (sys.executable, "-m", faulty_worker.__name__)
SESSION_MS = 2_000
"""The embedded broker takes any; in it the watchdog ticks every 0.2 s."""


async def started(worker: Process, kind: str, *, ready: bool = True) -> None:
    """Start a worker that does as told while its flag is there."""
    worker.settings["session_timeout_ms"] = str(SESSION_MS)
    await apply(worker)
    worker.start((*WORKER, kind, str(worker.folder / "flag")))
    if ready:
        await worker.ready()


async def close_an_hour(worker: Process, at_hour: int = 0) -> None:
    """Send an event, and one two hours later that closes and seals its window."""
    events = [flight(hour * HOUR_MS) for hour in (at_hour, at_hour + 2)]
    await worker.send(f"{worker.map_name}.raw", *((0, event) for event in events))


async def test_a_stopped_worker_joins_again_and_a_stuck_one_leaves(
    processes: Callable[..., Process],
) -> None:
    """Both lose their partitions; only a worker that stands still while it could run is ended."""
    worker = processes()
    await started(worker, "stuck")
    worker.running.send_signal(signal.SIGSTOP)
    stopped_s = time.monotonic()

    async def forgotten() -> bool:
        return time.monotonic() > stopped_s + 2 * SESSION_MS / 1_000

    await until(forgotten)
    worker.running.send_signal(signal.SIGCONT)
    await close_an_hour(worker)

    async def archived() -> bool:
        _, layers = await worker.get("/v1/layers")
        return bool(layers["layers"][0]["archived_cells"] == 1)

    await until(archived, SECONDS_MAX)
    # Now a driver that blocks the event loop.
    (worker.folder / "flag").touch()
    await close_an_hour(worker, 4)
    assert await worker.ended() == EXIT_CODE
    words = worker.log().splitlines()[-1]
    assert words.startswith("error: cannot stay in the group: the event loop stands still at "), (
        words
    )
    assert f"{faulty_worker.__file__}:" in words
    assert "write_or_not)" in words


async def test_a_background_task_that_dies_stops_its_worker_with_the_reason(
    processes: Callable[..., Process],
) -> None:
    """Emission would otherwise stop for ever, without a word."""
    worker = processes()
    await started(worker, "bug")
    (worker.folder / "flag").touch()
    await close_an_hour(worker)
    assert await worker.ended() == 1
    assert worker.log().splitlines()[-1] == "error: ValueError('a bug in a background task')"


async def test_while_a_partition_recovers_the_others_serve(
    processes: Callable[..., Process],
) -> None:
    """``/readyz`` tells which is missing, answers over all of them say that they are partial."""
    worker = processes()
    (worker.folder / "flag").touch()
    await started(worker, "slow", ready=False)
    raw = f"{worker.map_name}.raw"
    await worker.send(raw, (0, flight(0, "JFK")), (1, flight(0, "LGA")))
    path = f"/v1/layers/hour/cells?from=0&to={HOUR_MS}"

    async def served() -> bool:
        with contextlib.suppress(OSError):
            status, page = await worker.get(path)
            return status == 200 and bool(page["cells"])
        return False

    await until(served, SECONDS_MAX)
    status, page = await worker.get(path)
    assert page["partial"]
    assert [cell["key"]["origin"] for cell in page["cells"]] == ["JFK"]
    status, state = await worker.get("/readyz")
    assert status == 503
    assert state["reason"] == "restoring 1 partitions"
    assert state["restoring"] == {raw: [1]}
    assert state["serving"][raw] == [0]
    (worker.folder / "flag").unlink()
    await worker.ready()

    async def all_served() -> bool:
        _, page = await worker.get(path)
        found = {cell["key"]["origin"] for cell in page["cells"]}
        return found == {"JFK", "LGA"} and not page["partial"]

    await until(all_served, SECONDS_MAX)


async def test_sources_pause_while_the_archive_is_away_and_no_row_is_missing(
    processes: Callable[..., Process],
) -> None:
    """Told by /readyz and /metrics; the position stops, membership does not end, all goes on."""
    worker = processes(pending_bytes_max="30000", chunk_records_max="50", disk_free_bytes_min="0")
    await started(worker, "away")
    flag = worker.folder / "flag"
    flag.touch()
    events = [(number % 2, number * HOUR_MS // 40, f"{number % 30}") for number in range(4_000)]
    records = [(p, flight(at, f"O{p}", carrier)) for p, at, carrier in events]
    await worker.send(f"{worker.map_name}.raw", *records)

    async def paused() -> bool:
        status, state = await worker.get("/readyz")
        return status == 503 and "sources" in state["paused"]

    await until(paused, SECONDS_MAX)
    _, state = await worker.get("/readyz")
    assert any(reason.startswith("sources are paused: ") for reason in state["reasons"])
    assert state["reason"].startswith("the archive does not answer since ")
    assert "of cells wait to be acknowledged" in state["paused"]["sources"][0]
    assert state["serving"][f"{worker.map_name}.raw"] == [0, 1]
    held = await metrics(worker)
    assert held["treasure_map_paused", "sources", "pending_bytes"] == 1
    assert held["treasure_map_paused", "layers", "pending_bytes"] == 0
    # Blocks that merge take less; it stays paused down to the lower mark.
    assert held["treasure_map_pending_bytes",] > 0.8 * held["treasure_map_pending_max_bytes",]
    assert held["treasure_map_emission_failures_total", "archive"] > 0
    assert held["treasure_map_archived_rows_total", "hour"] == 0
    # It stays so for longer than a session, and stays a member.
    since_s = time.monotonic()

    async def still_paused() -> bool:
        assert await paused()
        return time.monotonic() > since_s + 1.5 * SESSION_MS / 1_000

    await until(still_paused)
    later = await metrics(worker)
    raw = f"{worker.map_name}.raw"
    for partition in ("0", "1"):
        position = "treasure_map_position", partition, raw
        assert 0 < later[position] < 2_000
        assert later[position] == held[position]
    assert later["treasure_map_rebalances_total",] == held["treasure_map_rebalances_total",]
    flag.unlink()
    await worker.ready()
    wanted = Counter((f"O{p}", carrier, at // HOUR_MS) for p, at, carrier in events)

    async def complete() -> bool:
        return await counted(worker) == wanted

    await until(complete, SECONDS_MAX)

    async def open_again() -> bool:
        return (await metrics(worker))["treasure_map_paused", "sources", "pending_bytes"] == 0

    # Also if the last measure, of a full table, came after the last record.
    await until(open_again, SECONDS_MAX)
    after = await metrics(worker)
    assert after["treasure_map_archived_rows_total", "hour"] > 0
    assert await worker.stop() == 0
    assert "sources pause, nothing is lost: " in worker.log()
    assert "sources resume" in worker.log()


async def metrics(worker: Process) -> dict[tuple[str, ...], float]:
    """Return the samples, by name and the values of labels, these in the order of their names."""
    status, text = await worker.ask("/metrics")
    assert status == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def counted(worker: Process) -> dict[tuple[str, str, int], int]:
    """Return the events of every cell of the hours, by origin, carrier and hour."""
    found: dict[tuple[str, str, int], int] = {}
    cursor = ""
    while True:
        path = f"/v1/layers/hour/cells?from=0&to={1_000 * HOUR_MS}&limit=5000"
        status, page = await worker.get(path + (f"&cursor={cursor}" if cursor else ""))
        assert status == 200
        assert not page["partial"]
        for row in page["cells"]:
            key: dict[str, Any] = row["key"]
            place = key["origin"], key["carrier"], row["window_start"] // HOUR_MS
            found[place] = row["measures"]["count"]
        cursor = page["cursor"]
        if cursor is None:
            return found


@pytest.mark.cassandra
@pytest.mark.slow
async def test_a_worker_starts_without_its_cassandra_and_archives_once_it_is_there(
    processes: Callable[..., Process], spare_cassandra: servers.CassandraServer
) -> None:
    """It folds and answers meanwhile, names the archive that it waits for, and loses nothing."""
    cassandra = spare_cassandra
    await asyncio.to_thread(cassandra.stop)
    worker = processes(
        archive="cassandra", cassandra_hosts=cassandra.host, cassandra_port=str(cassandra.port),
        cassandra_replication="1", cassandra_keyspace=f"k{uuid.uuid4().hex[:12]}",
    )  # fmt: skip
    await apply(worker)
    worker.start()
    await worker.says("the archive does not answer; closed cells wait in tables and journal")
    await close_an_hour(worker)

    async def folded() -> bool:
        _, ledger = await worker.get("/v1/ledger")
        return bool(ledger["layers"]["hour"]["folded"] == 2)

    await until(folded, SECONDS_MAX)
    status, ready = await worker.get("/readyz")
    assert status == 503
    assert ready["reason"].startswith("the archive does not answer since ")
    span = f"from={2 * HOUR_MS}&to={3 * HOUR_MS}"
    status, answer = await worker.get(f"/v1/layers/hour/cells?{span}")
    assert (status, len(answer["cells"])) == (200, 1)
    # It is sealed, and still in the table, because the archive has not acknowledged it.
    status, answer = await worker.get(f"/v1/layers/hour/cells?from=0&to={HOUR_MS}")
    assert (status, len(answer["cells"])) == (200, 1)
    await asyncio.to_thread(cassandra.start)
    try:
        await worker.ready()

        async def archived() -> bool:
            _, layers = await worker.get("/v1/layers")
            return bool(layers["layers"][0]["archived_cells"] >= 1)

        await until(archived, SECONDS_MAX)
        status, answer = await worker.get(f"/v1/layers/hour/cells?from=0&to={HOUR_MS}")
        assert (status, len(answer["cells"])) == (200, 1)
        assert await worker.stop() == 0
    finally:
        await asyncio.to_thread(cassandra.kill)
