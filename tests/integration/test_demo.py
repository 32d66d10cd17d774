"""The demo: its check finds differences, its display shows progress, and it ends cleanly."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import polars as pl
import pytest
from rich.console import Console

from app.demo import check
from app.demo import worker as demo_worker
from app.demo.display import Display, Progress, ledger_lines
from app.demo.flights import events
from app.demo.run import DemoTimes
from app.demo.worker import DemoError, DemoWorker, Missing, Status
from app.mapfile.load import load_map
from tables.model.errors import SettingError
from tables.model.layer import Layer, Map
from tests import ROOT
from tests.support import servers
from tests.support.waiting import wait_gone
from treasure_map.status import LayerStatus


@pytest.fixture
def themap() -> Map:
    """Give the map of the demo."""
    return load_map(events.MAP_FILE)


@pytest.fixture
def layer(themap: Map) -> Layer:
    """Give a layer to compare rows of."""
    return themap.layer("cancellations_month")


@pytest.fixture(scope="module")
def flights() -> pl.DataFrame:
    """Give some rows of the file."""
    return events.read_flights().head(20_000)


def status(**layer: int) -> Status:
    """Return the status of a worker with one layer, 3 of 5 records of the flights applied."""
    row = {"read": 3, "with_events": 3, "position": 3, "end": 5}
    ledger: dict[str, Any] = {
        "records": {"flights.raw": {"0": row}, "flights.layer.x": {"0": row}},
        "events": {"decoded": 6, "malformed": 0},
        "layers": {"hour": {"selected": 3, "folded": 3}},
        "balanced": True,
        "problems": [],
    }
    hour = LayerStatus(
        name="hour", open_cells=0, unacknowledged_windows=0, waiting_open_windows=0,
        archived_cells=0, watermark_ms=None, floor_ms=None, partitions=[0], whole_from={},
    )  # fmt: skip
    return Status(ledger, [msgspec.structs.replace(hour, **layer)])


def test_a_demo_of_given_length_splits_it_between_flights_and_radar() -> None:
    """Together they take that time; without a length the radar goes on for an hour."""
    plan = DemoTimes.of(20)
    assert plan.replay_seconds + plan.stream_seconds == pytest.approx(20)
    assert min(dataclasses.astuple(plan)) > 0
    assert DemoTimes.of(None) == DemoTimes(20, 3_600)


def test_equal_rows_have_no_differences(layer: Layer, flights: pl.DataFrame) -> None:
    """And there are rows to compare."""
    rows = check.expected(layer, flights)
    assert len(rows) > 10
    assert check.differences("here", layer, rows, dict(rows)) == []


def test_a_changed_a_missing_and_a_surplus_row_are_each_found(
    layer: Layer, flights: pl.DataFrame
) -> None:
    """Each is named with the value got and the value wanted."""
    want = check.expected(layer, flights)
    first, second, *_ = sorted(want)
    changed = {place: row for place, row in want.items() if place != second}
    changed[first] = {"count": -1}
    changed[0, ("??",)] = {"count": 7}
    found = "\n".join(check.differences("here", layer, want, changed))
    assert f"got {{'count': -1}}; want {want[first]}" in found
    assert f"got no row; want {want[second]}" in found
    assert "got {'count': 7}; want no row" in found


def test_many_differences_are_counted_and_not_all_shown(
    layer: Layer, flights: pl.DataFrame
) -> None:
    """Three rows and a number."""
    want = check.expected(layer, flights)
    found = check.differences("here", layer, want, {})
    assert len(found) == 4
    assert f"{len(want) - 3} more rows differ" in found[-1]


def test_events_of_sources_leave_out_the_contributions_of_layer_topics(themap: Map) -> None:
    """Six were decoded, three of them flights."""
    assert status().events(themap) == 3


def test_age_is_that_of_the_oldest_event_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written 10 at 1 s and 20 at 2 s.

    At 5 s with 9 applied the oldest has waited 4 s, with 10 it is 3 s, with 20 nothing waits.
    """
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress()
    for now, count in ((1.0, 10), (2.0, 20)):  # noqa: B007  # the clock reads it
        progress.write(count)
    now = 5.0
    ages = []
    for count in (9, 10, 20):
        progress.apply(count)
        ages.append(progress.age_ms)
    assert ages == [4_000, 3_000, 0]


def test_rate_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of long ago do not count."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress()
    assert progress.events_per_second == 0
    for now, count in ((0.0, 0), (10.0, 1_000), (11.0, 3_000)):  # noqa: B007
        progress.apply(count)
    assert progress.events_per_second == 2_000


def test_written_events_of_a_second_source_count_on() -> None:
    """Its own count begins at zero."""
    progress = Progress()
    progress.write(100)
    progress.begin()
    progress.write(5)
    assert progress.written == 105


def test_without_a_terminal_the_display_writes_plain_lines(
    themap: Map, capsys: pytest.CaptureFixture[str]
) -> None:
    """One at once, none again too soon, and the last in any case."""
    progress = Progress()
    progress.write(5)
    with Display("http://here", themap, Console(file=io.StringIO())) as display:
        display.show("flights", progress, status(open_cells=4, archived_cells=9))
        display.show("flights", progress, status())
        display.show("drained", progress, status(), last=True)
    first, last = capsys.readouterr().out.splitlines()
    assert "flights: 5 written, 3 applied" in first
    assert "4 open cells, 9 archived" in first
    assert "drained" in last
    assert "\x1b" not in first + last


def test_on_a_terminal_the_display_shows_each_layer_and_the_address(themap: Map) -> None:
    """The picture stays when the display ends."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=150)
    with Display("http://here", themap, console) as display:
        display.show("flights", Progress(), status(open_cells=1_234, archived_cells=56))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"hour +1,234 +56", shown)
    assert "query endpoint: http://here" in shown


def test_ledger_lines_leave_out_zeros_and_say_whether_it_balances() -> None:
    """A ledger that does not balance says why."""
    ledger = status().ledger
    lines = ledger_lines(ledger)
    assert any(re.search(r"records flights.raw: +read 3, with_events 3$", line) for line in lines)
    assert any(re.search(r"events: +decoded 6$", line) for line in lines)
    assert lines[-1] == "balanced"
    broken = ledger | {"balanced": False, "problems": ["three are missing"]}
    assert ledger_lines(broken)[-2:] == ["NOT balanced", "  three are missing"]


def test_a_worker_that_ends_at_once_is_reported_with_the_end_of_its_log(
    tmp_path: pathlib.Path,
) -> None:
    """A map that is not there ends the worker; its own message is passed on."""
    with (
        DemoWorker("127.0.0.1:1", tmp_path / "absent.toml", tmp_path) as worker,
        pytest.raises(DemoError, match=r"(?s)exit code \d.*absent\.toml"),
    ):
        asyncio.run(worker.ready())


async def test_a_demo_waits_as_long_as_something_moves(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the machine is; a standstill is an error that says how much is left."""
    worker = DemoWorker("127.0.0.1:1", tmp_path / "map.toml", tmp_path)
    monkeypatch.setattr(worker, "check", lambda: None)
    monkeypatch.setattr(worker, "_log_end", lambda: "nothing")
    monkeypatch.setattr(demo_worker, "_POLL_SECONDS", 0.01)
    said = iter([*(Missing(f"{n} left") for n in range(40, 0, -1)), None])
    progress = iter([*(Missing("a window", n) for n in range(40)), None])

    async def moves() -> Missing | None:
        return next(said)

    async def moves_inside() -> Missing | None:
        return next(progress)

    async def stands() -> Missing | None:
        return Missing("7 left", 7)

    await worker.wait(moves, 0.1)
    await worker.wait(moves_inside, 0.1)
    with pytest.raises(DemoError, match=r"nothing has moved for 0 s; got 7 left"):
        await worker.wait(stands, 0.1)


def test_a_variable_that_is_mistyped_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of a worker, whose own variables are left alone."""
    monkeypatch.setenv("TREASURE_MAP_BROKERS", "127.0.0.1:1")
    DemoWorker("127.0.0.1:1", tmp_path / "map.toml", tmp_path)
    monkeypatch.setenv("TREASURE_MAP_WEB_PROT", "6067")
    with pytest.raises(SettingError, match="such setting; did you mean TREASURE_MAP_WEB_PORT"):
        DemoWorker("127.0.0.1:1", tmp_path / "map.toml", tmp_path)


@pytest.fixture(autouse=True)
def _own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the usual port to whoever wants it: these tests run beside each other."""
    (port,) = servers.free_ports(1)
    monkeypatch.setenv("TREASURE_MAP_WEB_PORT", str(port))


@pytest.fixture
def demo() -> Iterator[subprocess.Popen[str]]:
    """Run the demo without a length, as a process."""
    environment = {k: v for k, v in os.environ.items() if k != "DEMO_SECONDS"}
    with subprocess.Popen(
        [sys.executable, "-m", "app", "demo"], cwd=ROOT, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        yield process
        process.kill()


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    return [
        int(number)
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir()
        for number in (task / "children").read_text().split()
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing_behind(
    demo: subprocess.Popen[str], number: signal.Signals
) -> None:
    """Broker, worker and the temporary folder are gone."""
    assert demo.stdout is not None
    told = []
    for line in demo.stdout:
        told.append(line)
        if "written" in line:
            break
    children = children_of(demo.pid)
    assert len(children) == 2, "".join(told)
    folders = set((ROOT / "var").glob("demo-*"))
    demo.send_signal(number)
    rest = demo.stdout.read()
    assert demo.wait(60) == 130, rest
    assert rest.endswith("stopped\n")
    for child in children:
        wait_gone(child)
    assert len(set((ROOT / "var").glob("demo-*")) & folders) < len(folders)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_demo_of_five_seconds_ends_with_everything_equal() -> None:
    """The whole flow: all rows of the flights over HTTP and in the archive equal the file's."""
    done = subprocess.run(
        [sys.executable, "-m", "app", "demo"], cwd=ROOT, env=os.environ | {"DEMO_SECONDS": "5"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "departures_month over HTTP: 187 rows equal the file" in done.stdout
    assert "departures_hour in the archive: 119,668 rows equal the file" in done.stdout
    assert "balanced" in done.stdout.splitlines()
