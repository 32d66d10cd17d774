"""Latency: how far a worker is behind its producers, in an open loop at a fixed rate.

Three paths, each from the tick at which an event was due to be sent:

    applied   the event's delta stands, is stored, and queries see it
    answer    a query over HTTP whose answer holds the event has come back: the age of its data
    by hand   in a run of its own: a consumer of the fewest lines has counted the event
    archived  from the event whose time moves the watermark past a window's end, to that window's
              row being acknowledged by the archive

Every event must be applied, and every answer come from a tick that was sent, before a time is told.
Quantiles are exact: over all events, answers and rows after the warm-up, not over a histogram.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
import os
import statistics
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import polars as pl

from benchmarks.by_hand import Topic, consume
from benchmarks.cases import CASES, WINDOW_MS
from benchmarks.runs import WorkerRun, made_map
from benchmarks.ticker import PROBE, Schedule, tick
from treasure_map.query import QueryClient, QueryFailedError

RATES = {5_000: 5, 50_000: 5, 200_000: 10}
"""Events a second, each with the milliseconds between two ticks."""

SMOKE_RATES = {1_000: 10}
SECONDS, SMOKE_SECONDS = 40.0, 8.0
WARM_UP_SECONDS, SMOKE_WARM_UP_SECONDS = 10.0, 2.0
ASK_SECONDS = 0.05
START_SECONDS_MAX = 60
OUT_OF_ORDERNESS_MS = 200
QUANTILES = (0.5, 0.99, 0.999)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """Quantiles of one path at one rate, in milliseconds, of so many samples."""

    case: str
    format: str
    path: str
    events_per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    samples: int
    cpu_share: float


def run(brokers: str, rate: int, folder: Path, *, smoke: bool) -> list[Row]:
    """Send events at ``rate`` through a worker; return a row for each path."""
    seconds = SMOKE_SECONDS if smoke else SECONDS
    interval_ms = (SMOKE_RATES if smoke else RATES)[rate]
    name = f"l{uuid.uuid4().hex[:8]}"
    text = CASES["json"].map_text(name)
    map_file, themap = made_map(brokers, text, name, folder)
    topic = themap.sources[0].topic
    ticks_file, times_file = folder / "ticks.arrow", folder / "times.arrow"
    os.environ["TIMES_FILE"] = str(times_file)
    with WorkerRun(brokers, map_file, folder, "benchmarks.timed") as worker:
        worker.wait(lambda _: worker.is_ready())
        schedule = Schedule(brokers, topic, interval_ms, ((rate, seconds),))
        spawn = multiprocessing.get_context("spawn")
        sender = spawn.Process(target=tick, args=(schedule, ticks_file))
        cpu, begun = worker.cpu_seconds(), time.monotonic()
        with _asking(worker.url) as answers:
            sender.start()
            sender.join()
        used = (worker.cpu_seconds() - cpu) / (time.monotonic() - begun)
        if sender.exitcode:
            raise RuntimeError(f"cannot measure: the sender ended with {sender.exitcode}")
        ticks = pl.read_ipc(ticks_file)
        total = int(ticks["count"].sum())
        worker.wait(lambda c: bool(c.ledger()["layers"]["five_seconds"]["folded"] == total))
    times = pl.read_ipc(times_file)
    warm_up = SMOKE_WARM_UP_SECONDS if smoke else WARM_UP_SECONDS
    since_ns = int(ticks["due_ns"].min()) + round(warm_up * 1e9)  # type: ignore[arg-type]
    paths = {
        "applied": applied(ticks, times.filter(what="delta", name=topic), since_ns),
        "answer": _answered(ticks, answers, since_ns),
        "archived": _archived(ticks, times.filter(what="rows", name="five_seconds"), since_ns),
    }
    return [_row(rate, path, found, total / seconds, used) for path, found in paths.items()]


def run_by_hand(brokers: str, rate: int, folder: Path, *, smoke: bool) -> Row:
    """Send events at ``rate`` to a consumer by hand; return its row, of path ``by hand``."""
    seconds = SMOKE_SECONDS if smoke else SECONDS
    interval_ms = (SMOKE_RATES if smoke else RATES)[rate]
    name = f"h{uuid.uuid4().hex[:8]}"
    _, themap = made_map(brokers, CASES["json"].map_text(name), name, folder)
    source = themap.sources[0]
    ticks_file, times_file = folder / "ticks.arrow", folder / "times.arrow"
    spawn = multiprocessing.get_context("spawn")
    ready, end = spawn.Event(), spawn.Event()
    consumer = spawn.Process(
        target=consume,
        args=(Topic(brokers, source.topic, source.partitions), times_file, ready, end),
    )
    schedule = Schedule(brokers, source.topic, interval_ms, ((rate, seconds),))
    sender = spawn.Process(target=tick, args=(schedule, ticks_file))
    consumer.start()
    if not ready.wait(START_SECONDS_MAX):
        raise RuntimeError("cannot measure: the consumer by hand did not start")
    begun = time.monotonic()
    sender.start()
    sender.join()
    lasted = time.monotonic() - begun
    end.set()
    consumer.join()
    if sender.exitcode or consumer.exitcode:
        raise RuntimeError(f"cannot measure: ended with {sender.exitcode}, {consumer.exitcode}")
    ticks = pl.read_ipc(ticks_file)
    warm_up = SMOKE_WARM_UP_SECONDS if smoke else WARM_UP_SECONDS
    since_ns = int(ticks["due_ns"].min()) + round(warm_up * 1e9)  # type: ignore[arg-type]
    found = applied(ticks, pl.read_ipc(times_file), since_ns)
    return _row(rate, "by hand", found, int(ticks["count"].sum()) / lasted, math.nan)


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Return a table of medians by rate and path, its head first, with the spread of the p99."""
    table = [["case", "path", "runs", "p50 ms", "p99 ms", "spread", "p99.9 ms", "max ms",
              "samples", "CPU"]]  # fmt: skip
    ordered = sorted(rows, key=lambda row: (row.events_per_second // 1_000, row.path))
    for (case, path), group in groupby(ordered, key=lambda row: (row.case, row.path)):
        runs = list(group)
        p99 = [row.p99_ms for row in runs]
        table.append([
            case, path, str(len(runs)), f"{statistics.median(row.p50_ms for row in runs):.1f}",
            f"{statistics.median(p99):.1f}", f"{min(p99):.1f}..{max(p99):.1f}",
            f"{statistics.median(row.p999_ms for row in runs):.1f}",
            f"{max(row.max_ms for row in runs):.1f}", f"{runs[0].samples:,}",
            "" if math.isnan(runs[0].cpu_share)
            else f"{statistics.median(row.cpu_share for row in runs):.0%}",
        ])  # fmt: skip
    return table


def applied(ticks: pl.DataFrame, deltas: pl.DataFrame, since_ns: int = 0) -> pl.DataFrame:
    """Return ``ms`` and ``count``: from each tick to the delta that holds its last event.

    ``due_ns`` and ``at_ns`` are when the tick was due and when the delta stood.
    """
    last = ticks.with_columns(offset=pl.col("first_offset") + pl.col("count") - 1)
    deltas = deltas.select("partition", "start", "stop", "at_ns").sort("start")
    found = last.sort("offset").join_asof(
        deltas,
        left_on="offset",
        right_on="start",
        by="partition",
        strategy="backward",
        check_sortedness=False,
    )
    missing = found.filter(pl.col("stop").is_null() | (pl.col("offset") >= pl.col("stop")))
    if missing.height:
        raise AssertionError(f"{missing.height} ticks were never applied: {missing.head(3)}")
    found = found.filter(pl.col("due_ns") >= since_ns)
    ms = (pl.col("at_ns") - pl.col("due_ns")) / 1e6
    return found.select("due_ns", "at_ns", ms=ms, count="count")


def _answered(ticks: pl.DataFrame, answers: list[tuple[int, int]], since_ns: int) -> pl.DataFrame:
    """Return ``ms`` and ``count``: from the newest tick in an answer to when it was here."""
    due = ticks.group_by("tick").agg(pl.col("due_ns").first())
    found = pl.DataFrame(answers, schema={"tick": pl.Int64, "at_ns": pl.Int64}, orient="row")
    joined = found.join(due, on="tick", how="left")
    if joined["due_ns"].null_count():
        raise AssertionError("an answer holds an event that was never sent")
    joined = joined.filter(pl.col("due_ns") >= since_ns)
    return joined.select(ms=(pl.col("at_ns") - pl.col("due_ns")) / 1e6, count=pl.lit(1))


def _archived(ticks: pl.DataFrame, rows: pl.DataFrame, since_ns: int) -> pl.DataFrame:
    """Return ``ms`` and ``count``: from the tick that closes a window to its first row."""
    first = rows.group_by("partition", "start", "stop").agg(pl.col("at_ns").min())
    closing = first.with_columns(time_ms=pl.col("stop") + OUT_OF_ORDERNESS_MS).sort("time_ms")
    found = closing.join_asof(
        ticks.select("partition", "time_ms", "due_ns").sort("time_ms"),
        on="time_ms", by="partition", strategy="forward", check_sortedness=False,
    )  # fmt: skip
    found = found.filter(pl.col("due_ns") >= since_ns)
    if not found.height:
        raise AssertionError("no window was archived")
    return found.select(ms=(pl.col("at_ns") - pl.col("due_ns")) / 1e6, count=pl.lit(1))


def _row(rate: int, path: str, found: pl.DataFrame, reached: float, cpu_share: float) -> Row:
    ordered = found.sort("ms").with_columns(below=pl.col("count").cum_sum())
    total = int(ordered["count"].sum())
    p50, p99, p999 = (
        float(ordered.filter(pl.col("below") >= share * total)["ms"][0]) for share in QUANTILES
    )
    largest = float(ordered["ms"][-1])
    return Row(f"{rate:,}/s", "json", path, reached, p50, p99, p999, largest, total, cpu_share)


@contextlib.contextmanager
def _asking(url: str) -> Iterator[list[tuple[int, int]]]:
    """Ask for the probe's cell all the time; give ticks in answers and when they had come."""
    answers: list[tuple[int, int]] = []
    ended = threading.Event()

    def ask() -> None:
        with QueryClient(url) as client:
            while not ended.wait(ASK_SECONDS):
                now_ms = time.time_ns() // 1_000_000
                window_ms = now_ms - now_ms % WINDOW_MS
                with contextlib.suppress(QueryFailedError, OSError):
                    answer = client.cells(
                        "five_seconds", {"entity": PROBE, "type": PROBE},
                        window_ms - WINDOW_MS, window_ms + WINDOW_MS,
                    )  # fmt: skip
                    at_ns = time.monotonic_ns()
                    ticks = [round(float(str(cell.measures["max_value"]))) for cell in answer.cells]
                    if ticks:
                        answers.append((max(ticks), at_ns))

    asking = threading.Thread(target=ask, name="ask")
    asking.start()
    try:
        yield answers
    finally:
        ended.set()
        asking.join()
