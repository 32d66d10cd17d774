"""Soak: a worker at a fixed rate for long, and whether its memory stays flat.

Events are of now, so windows close, are archived, forwarded and evicted all the time. The ledger
must have every event at the end. ``svg`` draws resident size and open rows over time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import statistics
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from app.mapfile.load import parse_map
from benchmarks.cases import CASES
from benchmarks.runs import WorkerRun, made_map
from benchmarks.ticker import Schedule, tick
from tables.model.layer import Map
from treasure_map.query import QueryClient

INTERVAL_MS = 10
SAMPLE_SECONDS, SMOKE_SAMPLE_SECONDS = 5.0, 0.5
WARM_UP_SHARE = 0.2
KEPT_BYTES = 256 << 20
"""Bytes kept of a partition of the source's topic."""

WIDTH, HEIGHT, MARGIN = 900, 360, 56


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One sample: seconds since the first event, and the worker's memory and counts."""

    seconds: float
    resident_bytes: int
    open_rows: int
    cpu_seconds: float


def run(brokers: str, rate: int, seconds: float, folder: Path, sample_seconds: float) -> list[Row]:
    """Send events at ``rate`` for a while; return samples.

    Raises:
        AssertionError: an event is not in the ledger.
    """
    name = f"s{uuid.uuid4().hex[:8]}"
    text = CASES["json"].map_text(name)
    asyncio.run(_make_short_log(brokers, parse_map(text, name)))
    map_file, themap = made_map(brokers, text, name, folder)
    rows: list[Row] = []
    ticks_file = folder / "ticks.arrow"
    with WorkerRun(brokers, map_file, folder) as worker:
        worker.wait(lambda _: worker.is_ready())
        schedule = Schedule(brokers, themap.sources[0].topic, INTERVAL_MS, ((rate, seconds),))
        sender = multiprocessing.get_context("spawn").Process(
            target=tick, args=(schedule, ticks_file)
        )
        sender.start()
        begun = time.monotonic()
        with QueryClient(worker.url) as client:
            while sender.is_alive():
                sender.join(sample_seconds)
                open_rows = sum(layer.open_cells for layer in client.layers())
                rows.append(
                    Row(time.monotonic() - begun, worker.memory_bytes(), open_rows,
                        worker.cpu_seconds())
                )  # fmt: skip
        if sender.exitcode:
            raise RuntimeError(f"cannot measure: the sender ended with {sender.exitcode}")
        ticks = schedule.ticks()
        sent = sum(ticks) + len(ticks)  # a probe with every tick
        worker.wait(lambda c: bool(c.ledger()["layers"]["five_seconds"]["folded"] == sent))
    return rows


async def _make_short_log(brokers: str, themap: Map) -> None:
    """Delete records of the source's topic that were read long ago, so that no disk is filled."""
    (source,) = themap.sources
    config = {"retention.bytes": str(KEPT_BYTES), "segment.bytes": str(KEPT_BYTES // 2)}
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    try:
        topic = NewTopic(source.topic, source.partitions, 1, topic_configs=config)
        await admin.create_topics([topic])
    finally:
        await admin.close()


def growth_bytes_per_hour(rows: Sequence[Row]) -> float:
    """Return the slope of resident size after the first fifth of the time."""
    warm = [row for row in rows if row.seconds >= WARM_UP_SHARE * rows[-1].seconds]
    slope, _ = statistics.linear_regression(
        [row.seconds for row in warm], [row.resident_bytes for row in warm]
    )
    return slope * 3_600


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Return a table of one line, its head first."""
    warm = [row for row in rows if row.seconds >= WARM_UP_SHARE * rows[-1].seconds]
    sizes = [row.resident_bytes / 2**20 for row in warm]
    return [
        ["minutes", "resident MiB, median", "least", "most", "MiB an hour", "open rows", "CPU"],
        [
            f"{rows[-1].seconds / 60:.1f}", f"{statistics.median(sizes):,.0f}",
            f"{min(sizes):,.0f}", f"{max(sizes):,.0f}",
            f"{growth_bytes_per_hour(rows) / 2**20:+,.1f}",
            f"{statistics.median(row.open_rows for row in warm):,.0f}",
            f"{(rows[-1].cpu_seconds - rows[0].cpu_seconds) / rows[-1].seconds:.0%}",
        ],
    ]  # fmt: skip


def svg(rows: Sequence[Row]) -> str:
    """Return a drawing of resident MiB and open rows, each from zero, over minutes."""
    minutes = [row.seconds / 60 for row in rows]
    sizes = [row.resident_bytes / 2**20 for row in rows]
    counts = [row.open_rows / 1_000 for row in rows]
    lines = [
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="'
        + " ".join(
            f"{_across(minute, minutes[-1]):.1f},{_up(value, max(values)):.1f}"
            for minute, value in zip(minutes, values, strict=True)
        )
        + '"/>'
        for values, colour in ((sizes, "#1f5fa8"), (counts, "#c0622d"))
    ]
    low, left, right = HEIGHT - MARGIN, MARGIN, WIDTH - MARGIN
    ends = (
        (left, MARGIN - 14, "start", "#1f5fa8", f"resident, 0 to {max(sizes):,.0f} MiB"),
        (right, MARGIN - 14, "end", "#c0622d", f"open rows, 0 to {max(counts):,.1f} thousand"),
        (left, low + 22, "start", "#333", "0"),
        (right, low + 22, "end", "#333", f"{minutes[-1]:.0f} minutes"),
    )
    labels = [
        f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}">{text}</text>'
        for x, y, anchor, colour, text in ends
    ]
    frame = f'<path d="M{left} {MARGIN}V{low}H{right}" fill="none" stroke="#888"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        + frame + "".join(lines) + "".join(labels) + "</svg>\n"
    )  # fmt: skip


def _across(minute: float, most: float) -> float:
    return MARGIN + minute / most * (WIDTH - 2 * MARGIN)


def _up(value: float, most: float) -> float:
    return HEIGHT - MARGIN - value / max(most, 1e-9) * (HEIGHT - 2 * MARGIN)
