"""``python -m app generate``: write a load with a known outcome to a source's topic."""

from __future__ import annotations

import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import click

from app.commands.progress_line import ProgressLine
from app.config.options import kafka_settings_options, option
from app.config.settings import Settings
from app.load.generator import generate
from app.load.plan import MAP_FILE, SOURCE, LoadSpec, default_start_ms, processes_for
from app.load.process import Progress
from app.load.writers import names
from app.mapfile.load import load_map
from tables.model.clock import wall_clock_ms

_SHARE = click.FloatRange(0, 1)


class _Auto(click.ParamType):
    """A number of processes, or ``auto``."""

    name = "N|auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        """Return the number; None for ``auto``."""
        if value in (None, "auto"):
            return None
        return cast("int", click.IntRange(min=1).convert(value, param, ctx))


@click.command(
    name="generate", help="Write synthetic events, some late or bad, and the ledger of them."
)
@click.option(
    "--map",
    "map_file",
    type=click.Path(dir_okay=False),
    help=f"The map that events are made for.  [default: map_file of the settings, if it is set or"
    f" there; else that of a shop, {MAP_FILE}]",
)
@click.option(
    "--source", help=f"The map's source to write to.  [default: its only one, or {SOURCE}]"
)
@option("--rate", click.FloatRange(min=0), 10_000.0, "Events a second; 0 is as fast as possible.")
@option("--seconds", click.FloatRange(min=0, min_open=True), 10.0, "How long to write.")
@option("--keys", click.IntRange(1, 10_000_000), 1_000, "How many keys there are.")
@option(
    "--skew", click.FloatRange(0, 10), 1.0,
    "Zipf's exponent: the key of rank r comes in proportion to r^-skew; 0: all alike.",
)  # fmt: skip
@option(
    "--types", click.IntRange(1, 100_000), 12,
    "Number of event types; fewer if patterns have no star.",
)  # fmt: skip
@option("--late", _SHARE, 0.0, "Share of events that come late, half of them too late.")
@option("--bad", _SHARE, 0.0, "Share of events that are replaced by unusable input.")
@option("--duplicates", _SHARE, 0.0, "Share of events that repeat an earlier one, with its id.")
@option("--format form", click.Choice(names()), "json", "The form of records.")
@option("--batch", click.IntRange(1, 20_000), 500, "Most events of a record that holds many.")
@option("--seed", int, 1, "Of the random numbers.")
@option(
    "--processes", _Auto(), "auto",
    "How many processes write; auto: as many as the rate needs, at most one a core.",
)  # fmt: skip
@option(
    "--manifest", click.Path(dir_okay=False, path_type=pathlib.Path),
    pathlib.Path("var/manifest.json"),
    "The file for the counts of written records and of the results that must follow.",
)  # fmt: skip
@click.option(
    "--start", "start_ms", type=int,
    help="Event time at the start, ms. [default: now, or the latest that the map allows]",
)  # fmt: skip
@option(
    "--speed", click.FloatRange(min=0, min_open=True), 1.0,
    "How fast event time runs, times real time.",
)  # fmt: skip
@click.option(
    "--settle/--no-settle", default=True, show_default=True,
    help="Whether to end with heartbeats that close and seal every window.",
)  # fmt: skip
@click.option("--append", is_flag=True, help="Write to a topic that holds records already.")
@kafka_settings_options
def command(
    *, settings: Settings, map_file: str | None, source: str | None, processes: int | None,
    form: str, manifest: pathlib.Path, start_ms: int | None, settle: bool, append: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Write a load and say how it went."""
    starts_later = start_ms is None
    map_file = map_file or _map_of(settings)
    themap = load_map(map_file)
    known = {one.name: one for one in themap.sources}
    name = source or (next(iter(known)) if len(known) == 1 else SOURCE)
    found = known.get(name)
    if start_ms is None and found is not None:
        now_ms = wall_clock_ms()
        start_ms = default_start_ms(themap, found, now_ms, options["seconds"], options["speed"])
    # If the source is not known, generate() says so.
    plan = LoadSpec(
        map_file=map_file, source=name, format=form, start_ms=start_ms or 0,
        brokers=settings.brokers, **options,
    )  # fmt: skip
    if processes is None:
        cores = len(os.sched_getaffinity(0))
        partitions = found.partitions if found is not None else 1
        processes = processes_for(plan.rate, plan.format, partitions, cores)
    with ProgressLine() as line:
        content = generate(
            plan, manifest, processes=processes, settle=settle, append=append,
            command=sys.argv, show=_shown(plan, line), login=settings, starts_later=starts_later,
            note=line.note,
        )  # fmt: skip
    _say(content, manifest)


def _map_of(settings: Settings) -> str:
    """Return the map of the settings, or that of a shop if they name none."""
    is_set = settings.map_file != Settings().map_file or settings.map_file.exists()
    return str(settings.map_file if is_set else MAP_FILE)


def _shown(plan: LoadSpec, line: ProgressLine) -> Callable[[dict[int, Progress]], None]:
    """Return the function that shows how far all parts are."""
    begin_s = 0.0

    def show(progress: dict[int, Progress]) -> None:
        nonlocal begin_s
        if not progress:
            return
        begin_s = begin_s or time.monotonic()
        behind_ms = max(one.behind_ms for one in progress.values())
        seconds = min(time.monotonic() - begin_s, plan.seconds)
        state = (
            f"{seconds:.0f} of {plan.seconds:g} s:"
            f" {sum(one.events for one in progress.values()):,} events"
        )
        if behind_ms >= 1_000:  # noqa: PLR2004  # a second
            state += f", {behind_ms / 1_000:.1f} s behind the schedule"
        line.show(state)

    return show


def _say(content: dict[str, Any], manifest: pathlib.Path) -> None:
    """Print the counts of the load."""
    seconds, cpu_s, events = content["seconds"], content["cpu_seconds"], content["events"]
    how = "stopped after" if content["stopped"] else "in"
    click.echo(
        f"wrote {events:,} events in {content['records']:,} records {how} {seconds:.1f} s"
        f" ({events / seconds:,.0f}/s, {events / max(cpu_s, 0.001):,.0f} per CPU-second),"
        f" at most {content['behind_ms_max']:,} ms behind the schedule"
    )
    click.echo(f"the counts that a worker must reach are in {manifest}")
