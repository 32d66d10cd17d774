"""Burst: ten times the rate for a minute, its effect on age, and the time until age is normal.

    base rate      10 times the rate           base rate
    |-- warm up --|======= burst =======|-- until age is normal -------|
                                        ^ backlog: sent, not applied yet

Every event must be applied, and be in the ledger once, before a time is told. Age is that of the
latency benchmark's path ``applied``: from the tick at which an event was due to its delta.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from benchmarks.cases import CASES
from benchmarks.latency import applied
from benchmarks.runs import WorkerRun, made_map
from benchmarks.ticker import Schedule, tick

FACTOR = 10
INTERVAL_MS = 10
PHASES_SECONDS, SMOKE_PHASES_SECONDS = (30, 60, 90), (2, 2, 3)
WARM_UP_SECONDS, SMOKE_WARM_UP_SECONDS = 10, 1
NORMAL_FACTOR, NORMAL_MORE_MS = 1.5, 5.0
"""Age is normal again while its median is at most so much above that of before the burst."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One run; ages in milliseconds, of events due before the burst and in it.

    ``normal_after_seconds`` is counted from the end of the burst, -1 if it was not reached;
    ``backlog_events`` were due and not applied at that end, and ``drained_per_second`` is how fast
    events were applied from then until it was gone.
    """

    case: str
    events: int
    events_per_second: int
    burst_events_per_second: int
    p50_ms: float
    p99_ms: float
    burst_p50_ms: float
    burst_max_ms: float
    backlog_events: int
    drained_per_second: float
    normal_after_seconds: int


def run(brokers: str, rate: int, folder: Path, *, smoke: bool) -> Row:
    """Send events at ``rate``, at ten times it for a while, and at ``rate`` again."""
    quiet, burst, after = SMOKE_PHASES_SECONDS if smoke else PHASES_SECONDS
    phases = ((rate, quiet), (FACTOR * rate, burst), (rate, after))
    name = f"b{uuid.uuid4().hex[:8]}"
    map_file, themap = made_map(brokers, CASES["json"].map_text(name), name, folder)
    topic = themap.sources[0].topic
    ticks_file, times_file = folder / "ticks.arrow", folder / "times.arrow"
    os.environ["TIMES_FILE"] = str(times_file)
    with WorkerRun(brokers, map_file, folder, "benchmarks.timed") as worker:
        worker.wait(lambda _: worker.is_ready())
        schedule = Schedule(brokers, topic, INTERVAL_MS, phases)
        spawn = multiprocessing.get_context("spawn")
        sender = spawn.Process(target=tick, args=(schedule, ticks_file))
        sender.start()
        sender.join()
        if sender.exitcode:
            raise RuntimeError(f"cannot measure: the sender ended with {sender.exitcode}")
        ticks = pl.read_ipc(ticks_file)
        total = int(ticks["count"].sum())
        worker.wait(lambda c: bool(c.ledger()["layers"]["five_seconds"]["folded"] == total))
    times = pl.read_ipc(times_file).filter(what="delta", name=topic)
    warm_up = SMOKE_WARM_UP_SECONDS if smoke else WARM_UP_SECONDS
    return _row(rate, applied(ticks, times), (warm_up, quiet, quiet + burst))


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Return a table, its head first, one line a run."""
    return [
        ["events/s", "burst", "age p50 ms", "p99 ms", "in the burst p50 ms", "most ms",
         "backlog", "drained/s", "normal after s"],
        *(
            [
                f"{row.events_per_second:,}", f"{row.burst_events_per_second:,}",
                f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}", f"{row.burst_p50_ms:.1f}",
                f"{row.burst_max_ms:,.0f}", f"{row.backlog_events:,}",
                f"{row.drained_per_second:,.0f}", str(row.normal_after_seconds),
            ]
            for row in rows
        ),
    ]  # fmt: skip


def _row(rate: int, ages: pl.DataFrame, edges: tuple[int, int, int]) -> Row:
    """Return a row of ages (``due_ns``, ``at_ns``, ``ms``, ``count``); ``edges`` in seconds."""
    warm_up, begin, end = edges
    first_ns = int(ages["due_ns"].min())  # type: ignore[arg-type]
    ages = ages.with_columns(second=(pl.col("due_ns") - first_ns) // 1_000_000_000)
    before = ages.filter(pl.col("second").is_between(warm_up, begin, closed="left"))
    inside = ages.filter(pl.col("second").is_between(begin, end, closed="left"))
    end_ns = first_ns + end * 1_000_000_000
    waiting = ages.filter(pl.col("due_ns") < end_ns, pl.col("at_ns") > end_ns)
    p50 = _quantile(before, 0.5)
    by_second = [
        (int(second), _quantile(group, 0.5))
        for (second, *_), group in ages.filter(pl.col("second") >= end)
        .group_by("second", maintain_order=True)
    ]  # fmt: skip
    normal = next(
        (second for second, age in by_second if age <= NORMAL_FACTOR * p50 + NORMAL_MORE_MS), None
    )
    drained_ns = 0 if not waiting.height else int(waiting["at_ns"].max()) - end_ns  # type: ignore[arg-type]
    drained = ages.filter(pl.col("at_ns").is_between(end_ns, end_ns + drained_ns))
    return Row(
        case="json",
        events=int(ages["count"].sum()),
        events_per_second=rate,
        burst_events_per_second=FACTOR * rate,
        p50_ms=p50,
        p99_ms=_quantile(before, 0.99),
        burst_p50_ms=_quantile(inside, 0.5),
        burst_max_ms=float(inside["ms"].max()),  # type: ignore[arg-type]
        backlog_events=int(waiting["count"].sum()),
        drained_per_second=int(drained["count"].sum()) / max(drained_ns / 1e9, 1e-9),
        normal_after_seconds=-1 if normal is None else normal - end,
    )


def _quantile(ages: pl.DataFrame, share: float) -> float:
    """Return an exact quantile over all events."""
    ordered = ages.sort("ms").with_columns(below=pl.col("count").cum_sum())
    total = int(ordered["count"].sum())
    return float(ordered.filter(pl.col("below") >= share * total)["ms"][0])
