"""``python -m benchmarks NAME``: run a measurement and print its table, or JSON."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# The load is made by this process, with all cores, before a worker is started.
os.environ.setdefault("POLARS_MAX_THREADS", str(os.cpu_count() or 1))

import click
import orjson
from rich.console import Console
from rich.table import Table

from app.demo.embedded_broker import EmbeddedBroker
from benchmarks import (
    archive,
    burst,
    ids,
    latency,
    memory,
    peers,
    profile,
    query_cost,
    recovery,
    soak,
    throughput,
    verify,
)
from benchmarks.cases import CASES, Case
from benchmarks.runs import Row, summary

ROOT = Path(__file__).resolve().parent.parent


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def group() -> None:
    """Measure the whole job on this machine."""


@group.command(name="throughput")
@click.option("--case", "names", multiple=True, type=click.Choice(list(CASES)))
@click.option("--events", type=click.IntRange(min=10_000), help="How many; a default by case.")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--ids", "with_ids", is_flag=True, help="Events have ids, without duplicates.")
@click.option("--smoke", is_flag=True, help="Few events, one run, embedded broker.")
@click.option("--brokers", help="Brokers to use instead of one that is started here.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of rows.")
def throughput_command(
    names: tuple[str, ...], *, events: int | None, runs: int, smoke: bool, brokers: str | None,
    as_json: bool, with_ids: bool,
) -> None:  # fmt: skip
    """Events that one worker takes through the whole job in a second of CPU time."""
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = stack.enter_context(_broker(brokers, folder, smoke))
        for name in names or CASES:
            case = dataclasses.replace(CASES[name], ids=with_ids)
            count = events or (throughput.SMOKE_EVENTS if smoke else case.events)
            with (
                _cassandra(case, folder / f"cassandra-{name}") as cassandra,
                throughput.loaded(case, found, count, cassandra) as load,
            ):
                for number in range(1 if smoke else runs):
                    rows.append(throughput.run(load, folder / f"{name}-{number}"))
                    _say(f"{name}: {rows[-1].events_per_cpu_second:,.0f} events per CPU-second")
    _print(rows, summary(rows), as_json=as_json)


@group.command(name="profile")
@click.option("--case", "name", type=click.Choice(list(CASES)), default="json", show_default=True)
@click.option("--events", type=click.IntRange(min=10_000), help="How many; a default by case.")
@click.option("--smoke", is_flag=True, help="Few events, embedded broker.")
@click.option("--brokers", help="Brokers to use instead of one that is started here.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of rows.")
@click.option("--lines", type=click.IntRange(min=0), default=0, help="Busiest lines to print too.")
def profile_command(
    name: str, *, events: int | None, smoke: bool, brokers: str | None, as_json: bool, lines: int
) -> None:
    """The CPU time of a worker, by stage."""
    case = CASES[name]
    count = events or (profile.SMOKE_EVENTS if smoke else case.events)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = stack.enter_context(_broker(brokers, folder, smoke))
        cassandra = stack.enter_context(_cassandra(case, folder / "cassandra"))
        load = stack.enter_context(throughput.loaded(case, found, count, cassandra))
        rows, busiest = profile.run(load, folder / "worker")
    _print(rows, profile.summary(rows), as_json=as_json)
    for row in busiest[:lines]:
        _say(f"{row.seconds:7.2f} s {row.nanoseconds_per_event:7.0f} ns/event  {row.stage}")


@group.command(name="latency")
@click.option("--rate", "rates", multiple=True, type=int, help="Events a second.")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--smoke", is_flag=True, help="Few events, one run, embedded broker.")
@click.option("--brokers", help="Brokers to use instead of one that is started here.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of rows.")
def latency_command(
    rates: tuple[int, ...], *, runs: int, smoke: bool, brokers: str | None, as_json: bool
) -> None:
    """How far a worker is behind its producers, by rate."""
    known = latency.SMOKE_RATES if smoke else latency.RATES
    if strange := [rate for rate in rates if rate not in known]:
        raise click.ClickException(f"cannot measure at {strange}: want of {list(known)}")
    rows: list[latency.Row] = []
    with tempfile.TemporaryDirectory() as folder, _broker(brokers, Path(folder), smoke) as found:
        for rate in rates or known:
            for number in range(1 if smoke else runs):
                rows += latency.run(found, rate, Path(folder, f"{rate}-{number}"), smoke=smoke)
                by_hand = Path(folder, f"{rate}-{number}-by-hand")
                rows.append(latency.run_by_hand(found, rate, by_hand, smoke=smoke))
                _say(f"{rate:,} events/s: applied p50 {rows[-4].p50_ms:.1f} ms")
    _print(rows, latency.summary(rows), as_json=as_json)


@group.command(name="burst")
@click.option("--rate", type=click.IntRange(min=100), default=20_000, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--smoke", is_flag=True, help="Seconds, few events, one run, embedded broker.")
@click.option("--brokers", help="Brokers to use instead of one that is started here.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of rows.")
def burst_command(*, rate: int, runs: int, smoke: bool, brokers: str | None, as_json: bool) -> None:
    """How much ten times the rate for a minute raises the age, and for how long."""
    rows: list[burst.Row] = []
    with tempfile.TemporaryDirectory() as folder, _broker(brokers, Path(folder), smoke) as found:
        for number in range(1 if smoke else runs):
            base = 300 if smoke else rate
            rows.append(burst.run(found, base, Path(folder, f"burst-{number}"), smoke=smoke))
            _say(f"{base:,} events/s: normal {rows[-1].normal_after_seconds} s after the burst")
    _print(rows, burst.summary(rows), as_json=as_json)


@group.command(name="archive")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--smoke", is_flag=True, help="Few rows, one run, the embedded archive.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of rows.")
def archive_command(*, runs: int, smoke: bool, as_json: bool) -> None:
    """Rows that the archives take in a second of CPU time, by the size of emissions."""
    rows: list[archive.Row] = []
    count = archive.SMOKE_ROWS if smoke else archive.ROWS
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        case = CASES["json-cassandra"]
        found = {} if smoke else stack.enter_context(_cassandra(case, folder / "cassandra"))
        for kind in ("embedded", "cassandra") if found else ("embedded",):
            for cells in archive.CELLS:
                for number in range(1 if smoke else runs):
                    name = f"{kind}{cells}_{number}"
                    settings = found | {"cassandra_keyspace": name} if kind == "cassandra" else {}
                    themap = archive.map_of(name)
                    opened = throughput.archive_of(settings, folder / name)
                    rows.append(asyncio.run(archive.run(opened, themap, kind, count, cells)))
                    _say(f"{rows[-1].case}: {rows[-1].rows_per_cpu_second:,.0f} rows/CPU-s")
    _print(rows, archive.summary(rows), as_json=as_json)


@group.command(name="peers")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="The folder of the peers' scripts.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of their installation, which is made if it is missing.",
)
@click.option("--system", "systems", multiple=True, type=click.Choice(list(peers.SYSTEMS)))
@click.option("--events", type=click.IntRange(min=10_000), default=peers.EVENTS, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of rows.")
def peers_command(
    folder: Path, work: Path, systems: tuple[str, ...], *, events: int, runs: int, as_json: bool
) -> None:
    """The peers' job on other stream processors and here, with ratios."""
    rows: list[peers.Row] = []
    names = systems or tuple(peers.SYSTEMS)
    with tempfile.TemporaryDirectory() as temporary, _broker(None, Path(temporary), False) as found:
        others = peers.Peers(folder.resolve(), work.resolve(), found)
        truth = others.prepare(names, events)
        for number in range(runs):
            for name in names:
                rows.append(others.run(name, events))
                _say(f"{name}: {rows[-1].warm_events_per_cpu_second:,.0f} events per CPU-second")
            ours = Path(temporary, f"ours-{number}")
            rows.append(peers.run_ours(found, events, truth, ours))
            _say(f"ours: {rows[-1].events_per_cpu_second:,.0f} events per CPU-second")
    rows.sort(key=lambda row: row.case)
    _print(rows, peers.summary(rows), as_json=as_json)


@group.command(name="recovery")
@click.option("--cells", type=click.IntRange(min=1_000), help="Open cells of the partition.")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--smoke", is_flag=True, help="Few cells, one run, embedded broker.")
@click.option("--brokers", help="Brokers to use instead of one that is started here.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of rows.")
def recovery_command(
    *, cells: int | None, runs: int, smoke: bool, brokers: str | None, as_json: bool
) -> None:
    """Open cells that a new owner of a partition brings back in a second."""
    count = cells or (recovery.SMOKE_CELLS if smoke else recovery.CELLS)
    rows: list[recovery.Row] = []
    with tempfile.TemporaryDirectory() as folder, _broker(brokers, Path(folder), smoke) as found:
        load = recovery.loaded(found, count, Path(folder, "worker"))
        for case in ("journal", "store"):
            for number in range(1 if smoke else runs):
                rows.append(recovery.run(case, load, Path(folder, f"{case}-{number}")))
                _say(f"{case}: {count:,} cells in {rows[-1].seconds:.2f} s")
    _print(rows, recovery.summary(rows), as_json=as_json)


@group.command(name="verify")
@click.option("--format", "forms", multiple=True, type=click.Choice(["json", "ndjson", "arrow"]))
@click.option("--events", type=click.IntRange(min=10_000), help="How many; ten million by default.")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--smoke", is_flag=True, help="Few events, one run, embedded broker.")
@click.option("--brokers", help="Brokers to use instead of one that is started here.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of rows.")
def verify_command(
    forms: tuple[str, ...], *, events: int | None, runs: int, smoke: bool, brokers: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """CPU time and memory of a recomputation of five layers from the raw topic."""
    count = events or (verify.SMOKE_EVENTS if smoke else verify.EVENTS)
    rows: list[verify.Row] = []
    with tempfile.TemporaryDirectory() as folder, _broker(brokers, Path(folder), smoke) as found:
        for form in forms or ("json",):
            place = Path(folder, form)
            with (
                throughput.loaded(verify.case_of(form, count), found, count) as load,  # type: ignore[arg-type]
                verify.worked(load, place) as (worker, map_file),
            ):
                for number in range(1 if smoke else runs):
                    rows.append(verify.run(load, worker, map_file, place / str(number)))
                    _say(f"{form}: {rows[-1].cpu_seconds:.1f} s of CPU time")
    _print(rows, verify.summary(rows), as_json=as_json)


@group.command(name="memory")
@click.option(
    "--cells", "sizes", multiple=True, type=click.IntRange(min=1_000), help="Of a worker."
)
@click.option("--smoke", is_flag=True, help="Few cells, embedded broker.")
@click.option("--brokers", help="Brokers to use instead of one that is started here.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of rows.")
def memory_command(
    *, sizes: tuple[int, ...], smoke: bool, brokers: str | None, as_json: bool
) -> None:
    """The memory that a worker needs for an open cell, by the growth of its resident size."""
    counts = sizes or (memory.SMOKE_CELLS if smoke else memory.CELLS)
    if len(counts) < 2:  # noqa: PLR2004 - a slope
        raise click.ClickException("cannot tell how it grows: give --cells at least twice")
    seconds = memory.SMOKE_SETTLED_SECONDS if smoke else memory.SETTLED_SECONDS
    with tempfile.TemporaryDirectory() as folder, _broker(brokers, Path(folder), smoke) as found:
        rows = memory.run(found, counts, Path(folder, "memory"), seconds)
    _print(rows, memory.summary(rows), as_json=as_json)


@group.command(name="soak")
@click.option("--minutes", type=click.FloatRange(min=0.1), default=30, show_default=True)
@click.option("--rate", type=click.IntRange(min=100), default=20_000, show_default=True)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="An SVG to write.")
@click.option("--smoke", is_flag=True, help="Seconds, embedded broker.")
@click.option("--brokers", help="Brokers to use instead of one that is started here.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of rows.")
def soak_command(
    *, minutes: float, rate: int, plot: Path | None, smoke: bool, brokers: str | None, as_json: bool
) -> None:
    """Memory of a worker at a fixed rate for long."""
    seconds = 8.0 if smoke else minutes * 60
    every = soak.SMOKE_SAMPLE_SECONDS if smoke else soak.SAMPLE_SECONDS
    with tempfile.TemporaryDirectory() as folder, _broker(brokers, Path(folder), smoke) as found:
        rows = soak.run(found, 500 if smoke else rate, seconds, Path(folder, "soak"), every)
    if plot is not None:
        plot.write_text(soak.svg(rows))
    _print(rows, soak.summary(rows), as_json=as_json)


@group.command(name="ids")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--smoke", is_flag=True, help="Few events and ids, one run.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of rows.")
def ids_command(*, runs: int, smoke: bool, as_json: bool) -> None:
    """CPU time that telling duplicates takes an event, and the size of a remembered id."""
    remembered = ids.SMOKE_REMEMBERED if smoke else ids.REMEMBERED
    events = ids.SMOKE_EVENTS if smoke else ids.EVENTS
    rows = [
        ids.run(remembered, events, chunk, share)
        for chunk, share in ids.CHUNKS
        for _ in range(1 if smoke else runs)
    ]
    _print(rows, ids.summary(rows), as_json=as_json)


@group.command(name="query_cost")
@click.option("--smoke", is_flag=True, help="Few events and asks.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of rows.")
def query_cost_command(*, smoke: bool, as_json: bool) -> None:
    """The reads and times of queries, of raw events by minute and of layers, in real Cassandra."""
    servers = _servers()
    for name in ("kafka", "cassandra"):
        if reason := servers.why_missing(name):
            raise click.ClickException(f"cannot measure query_cost: {reason}")
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.KafkaServer(Path(folder, "kafka"), measured=not smoke) as kafka,
        servers.CassandraServer(Path(folder, "cassandra"), measured=not smoke) as cassandra,
    ):
        settings = _cassandra_settings(cassandra)
        rows = query_cost.run(
            kafka.bootstrap, settings, cassandra.pid, Path(folder, "query_cost"), smoke=smoke
        )
    _print(rows, query_cost.summary(rows), as_json=as_json)


@contextlib.contextmanager
def _broker(brokers: str | None, folder: Path, smoke: bool) -> Iterator[str]:
    """Give brokers: those named, else real Kafka from jars, else the embedded one."""
    if brokers:
        yield brokers
        return
    servers = _servers()
    if smoke or servers.why_missing("kafka"):
        with EmbeddedBroker() as embedded:
            _say("broker: embedded")
            yield embedded.bootstrap
    else:
        with servers.KafkaServer(folder / "kafka", measured=True) as kafka:
            _say("broker: Apache Kafka")
            yield kafka.bootstrap


@contextlib.contextmanager
def _cassandra(case: Case, folder: Path) -> Iterator[dict[str, str]]:
    """Start Cassandra if a case archives there; give the settings of its workers."""
    if case.archive != "cassandra":
        yield {}
        return
    servers = _servers()
    if reason := servers.why_missing("cassandra"):
        raise click.ClickException(f"cannot measure {case.name}: {reason}")
    with servers.CassandraServer(folder, measured=True) as cassandra:
        yield _cassandra_settings(cassandra)


def _cassandra_settings(cassandra: Any) -> dict[str, str]:
    return {
        "archive": "cassandra",
        "cassandra_hosts": cassandra.host,
        "cassandra_port": str(cassandra.port),
        "cassandra_replication": "1",
    }


def _servers() -> Any:
    # The module of the tests; it runs the servers from Maven's jars.
    return importlib.import_module("tests.support.servers")


def _print(rows: Sequence[Any], columns: list[list[str]], *, as_json: bool) -> None:
    if as_json:
        click.echo(orjson.dumps([dataclasses.asdict(row) for row in rows]))
        return
    table = Table(*columns[0], box=None, header_style="bold")
    for cells in columns[1:]:
        table.add_row(*cells)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    group(prog_name="python -m benchmarks")
