"""Profile: shares of a worker's CPU-second by stage, over a run whose answers are checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import orjson

from benchmarks import throughput

SMOKE_EVENTS = 20_000


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The CPU time of one stage over a whole run, from the worker's start on."""

    case: str
    stage: str
    seconds: float
    share: float
    nanoseconds_per_event: float


def run(load: throughput.Load, folder: Path) -> tuple[list[Row], list[Row]]:
    """Run the load through a sampled worker; return its stages and its busiest lines."""
    throughput.run(load, folder, module="benchmarks.sampled")
    notes = orjson.loads((folder / "profile.json").read_bytes())
    total = sum(notes["stages"].values())

    def rows(seconds: dict[str, float]) -> list[Row]:
        found = sorted(seconds.items(), key=lambda item: -item[1])
        return [
            Row(load.case.title, name, used, used / total, used / load.events * 1e9)
            for name, used in found
        ]

    return rows(notes["stages"]), rows(notes["lines"])


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Return a table of stages, its head first."""
    table = [["case", "stage", "CPU-s", "share", "ns/event"]]
    table += [
        [row.case, row.stage, f"{row.seconds:.2f}", f"{row.share:.1%}",
         f"{row.nanoseconds_per_event:,.0f}"]
        for row in rows
    ]  # fmt: skip
    return table
