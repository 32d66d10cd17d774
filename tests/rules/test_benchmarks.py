"""Benchmarks: the smoke size runs, and the load written is the load asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from agents.decode.records import Decoder
from app.mapfile.load import parse_map
from benchmarks.cases import CASES
from benchmarks.load import WINDOWS, encode, events_of, truth_of
from tests import ROOT
from tests.support.common import run_of


@pytest.mark.parametrize("name", CASES)
def test_every_form_holds_the_same_events(name: str) -> None:
    """A worker decodes the events that were made."""
    events = events_of(5_000)
    records = encode(CASES[name], events)
    source = parse_map(CASES[name].map_text("b"), "b").sources[0]
    batch = Decoder(source).decode([run_of(list(records))])
    assert batch.frame.select("type", "entity", "value").equals(
        events.select("type", "entity", "value")
    )
    assert batch.frame["time"].equals(events["at"], check_names=False)


def test_enough_windows_close() -> None:
    """A measurement of few windows would leave out the cost of closing."""
    truth = truth_of(events_of(20_000), CASES["json"].layers())
    assert truth["five_seconds"]["window_start"].n_unique() >= WINDOWS
    assert truth["five_seconds"]["events"].sum() == 20_000


@pytest.mark.slow
def test_the_smoke_size_of_throughput_gives_rows() -> None:
    """The rows were compared with the truth before they were printed."""
    command = [sys.executable, "-m", "benchmarks", "throughput", "--smoke", "--json"]
    command += ["--case", "arrow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = orjson.loads(done.stdout)
    assert (row["case"], row["format"], row["events"]) == ("arrow", "arrow", 20_000)
    assert row["windows_closed"] >= WINDOWS
    # So few events cost less than the start of a worker varies: their rate says nothing.
    assert row["startup_cpu_seconds"] > 0
    assert row["peak_memory_bytes"] > 0


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_a_map(name: str) -> None:
    """It declares the layers whose truth is compared, and one that is made from another."""
    case = CASES[name]
    themap = parse_map(case.map_text("b"), name)
    assert {layer.name for layer in themap.layers} == {layer.name for layer in case.layers()}
    assert len(themap.layers) == case.base_layers + 1
    assert themap.sources[0].partitions == case.partitions


@pytest.mark.slow
def test_the_smoke_size_of_profile_gives_stages() -> None:
    """The stages' times add up to the whole; native calls count for their caller."""
    command = [sys.executable, "-m", "benchmarks", "profile", "--smoke", "--json"]
    command += ["--case", "json-5-layers"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = orjson.loads(done.stdout)
    assert {"decode", "fold", "cycle", "local store"} <= {row["stage"] for row in rows}
    assert sum(row["share"] for row in rows) == pytest.approx(1)


@pytest.mark.slow
def test_the_smoke_size_of_latency_gives_every_path() -> None:
    """All events were applied, and every answer was of an event that was sent."""
    command = [sys.executable, "-m", "benchmarks", "latency", "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = orjson.loads(done.stdout)
    assert [row["path"] for row in rows] == ["applied", "answer", "archived", "by hand"]
    assert all(0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"] for row in rows)


@pytest.mark.slow
def test_the_smoke_size_of_burst_gives_a_row() -> None:
    """All events were applied once; the phases are those that were asked for."""
    command = [sys.executable, "-m", "benchmarks", "burst", "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = orjson.loads(done.stdout)
    # With every tick of 10 ms goes a probe.
    assert row["events"] == 300 * 5 + 3_000 * 2 + 700
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert row["burst_p50_ms"] <= row["burst_max_ms"]


@pytest.mark.slow
def test_the_smoke_size_of_archive_gives_rows() -> None:
    """The rows were read back before their time was told."""
    command = [sys.executable, "-m", "benchmarks", "archive", "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = orjson.loads(done.stdout)
    assert [row["cells"] for row in rows] == [20, 200, 2_000]
    assert all(row["rows_per_cpu_second"] > 0 for row in rows)


@pytest.mark.slow
def test_the_smoke_size_of_ids_gives_rows() -> None:
    """Duplicates were counted before the times were printed."""
    command = [sys.executable, "-m", "benchmarks", "ids", "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = orjson.loads(done.stdout)
    assert [(row["chunk"], row["duplicates"]) for row in rows] == [
        (2_000, 0), (2_000, 0.01), (2_000, 0.5), (5, 0),
    ]  # fmt: skip
    assert all(16 < row["journal_bytes_per_id"] < 200 for row in rows)
    assert all(row["micros_per_event"] > 0 for row in rows)


@pytest.mark.slow
def test_the_smoke_size_of_recovery_gives_rows() -> None:
    """Recovery reads the journal alone, or the local store; the cells were counted before."""
    command = [sys.executable, "-m", "benchmarks", "recovery", "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = orjson.loads(done.stdout)
    assert [(row["case"], row["cells"]) for row in rows] == [("journal", 20_000), ("store", 20_000)]
    assert all(row["cells_per_second"] > 0 for row in rows)


@pytest.mark.slow
def test_the_smoke_size_of_memory_gives_a_slope() -> None:
    """A worker for each size; so few cells cost less than a start varies, so the slope is free."""
    command = [sys.executable, "-m", "benchmarks", "memory", "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = orjson.loads(done.stdout)
    assert [row["cells"] for row in rows] == [2_000, 8_000]
    assert all(row["peak_bytes"] >= row["resident_bytes"] > 2**20 for row in rows)


@pytest.mark.slow
def test_the_smoke_size_of_verify_finds_all_equal() -> None:
    """The report was compared with the truth; five layers."""
    command = [sys.executable, "-m", "benchmarks", "verify", "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = orjson.loads(done.stdout)
    assert [row["case"] for row in rows] == ["json"]
    assert {(row["layers"], row["events"]) for row in rows} == {(5, 8_000)}
    assert all(row["cpu_seconds"] > 0 and row["peak_memory_bytes"] > 0 for row in rows)


@pytest.mark.slow
def test_the_smoke_size_of_soak_gives_samples_and_a_plot(tmp_path: Path) -> None:
    """Every event sent was in the ledger at the end."""
    plot = tmp_path / "soak.svg"
    command = [sys.executable, "-m", "benchmarks", "soak", "--smoke", "--json", "--plot", str(plot)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = orjson.loads(done.stdout)
    assert len(rows) > 10
    assert max(row["open_rows"] for row in rows) > 0
    lines = re.findall(r'<polyline [^>]* points="([^"]*)"/>', plot.read_text())
    assert [len(line.split()) for line in lines] == [len(rows)] * 2


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.cassandra
def test_the_smoke_size_of_query_cost_compares_both_designs() -> None:
    """Every answer of both was right before its cost was told; layers read less of a long range."""
    command = [sys.executable, "-m", "benchmarks", "query_cost", "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = orjson.loads(done.stdout)
    queries = {row["query"] for row in rows}
    assert len(queries) == 5
    for design in ("raw", "layers", "layers, cached"):
        assert {row["query"] for row in rows if row["design"] == design} == queries
    long = [row for row in rows if row["design"] == "layers" and "day" in row["query"]]
    assert all(row["read_reduction"] > 0.5 for row in long), long
    shares = {row["design"]: row["busiest_partition_share"] for row in rows}
    assert shares["layers"] < shares["raw"] == 1
