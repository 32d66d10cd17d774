"""``try``: right answers from an own file, without a Kafka."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.commands.try_ import command
from tables.model.window import time_text
from tests import ROOT
from tests.support import github_events
from tests.support.commands import read_until, running
from treasure_map import QueryClient

SECONDS_MAX = 300
LAYERS = ("pushes_hour", "pushes_day", "actors_day")


@pytest.fixture
def map_file(tmp_path: Path) -> Path:
    """Give the map of the events."""
    file = tmp_path / "map.toml"
    file.write_text(github_events.MAP)
    return file


def rows_of(client: QueryClient, layer: str) -> github_events.Rows:
    """Return all rows of a layer as they are answered."""
    answer = client.cells(layer, {}, "2024-01-01", "2025-01-01")
    assert not answer.partial
    return {
        (time_text(cell.window_start), str(*cell.key.values())): tuple(
            int(value or 0) for value in cell.measures.values()
        )
        for cell in answer.cells
    }


def test_the_answers_equal_a_recomputation_of_the_file(map_file: Path, tmp_path: Path) -> None:
    """All rows of all layers, open windows too; broken events are told apart; Ctrl-C ends it."""
    made = github_events.events()
    bad = [b'{"id":"x"', b'{"id":"y","type":"PushEvent","created_at":"2024-03-01T00:00:00Z"}']
    file = tmp_path / "events.ndjson"
    file.write_bytes(github_events.lines(made) + b"\n".join(bad))
    keep = tmp_path / "kept"
    with running("try", map_file, file, "--keep", keep) as process:
        said = read_until(process.stdout, "it serves queries until Ctrl-C")
        found = re.search(r"all routes: (http://\S+)/docs", said)
        assert found is not None, said
        with QueryClient(found[1]) as client:
            rows = {layer: rows_of(client, layer) for layer in LAYERS}
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS_MAX) == 130
    want = github_events.expected(made)
    assert rows == want
    forks = sum(event["type"] == "ForkEvent" for event in made)
    pushes = sum(event["type"] == "PushEvent" for event in made)
    assert f"read {len(made) + 2:,} events of github.raw" in said
    assert f"{pushes} folded into pushes_hour" in said
    assert "refused: 1 json, 1 missing" in said
    assert "key field login of layer actors_day is null or absent" in said
    assert f"{forks} of types that no layer selects: ForkEvent ({forks})" in said
    assert "python -m app query pushes_hour --from 2024-03-01 --to 2024-03-03T02:00:00Z" in said
    assert "does not balance" not in said
    assert "\x1b" not in said
    assert (keep / "archive").is_dir()
    again = CliRunner().invoke(command, [str(map_file), str(file), "--keep", str(keep)])
    assert "it is not empty" in str(again.exception)


def test_on_a_terminal_progress_is_shown_until_all_is_applied(
    map_file: Path, tmp_path: Path
) -> None:
    """In one line, which is gone when the report comes; the report is on standard output."""
    file = tmp_path / "events.ndjson"
    file.write_bytes(github_events.lines(github_events.events(50)))
    ours, its = pty.openpty()
    with running("try", map_file, file, "--seconds", "0", stderr=its) as process:
        os.close(its)
        said, _ = process.communicate(timeout=SECONDS_MAX)
        assert process.returncode == 0, said
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    *states, last = shown.split("\r\x1b[2K")
    assert last == ""
    assert any(
        re.fullmatch(r"50 events, [\d,]+/s, 100% of the input, \d+ applied", one) for one in states
    ), shown
    assert "\x1b" not in said


def test_a_file_out_of_order_says_the_disorder_that_takes_all_of_it(
    map_file: Path, tmp_path: Path
) -> None:
    """With that max_out_of_orderness nothing is late."""
    made = github_events.events(200)
    file = tmp_path / "events.json"
    file.write_text(json.dumps(made[100:] + made[:100]))
    with running("try", map_file, file, "--seconds", "0") as process:
        said, _ = process.communicate(timeout=SECONDS_MAX)
        assert process.returncode == 0, said
    assert " too late" in said
    found = re.search(r'set max_out_of_orderness = "(\w+)" in ', said)
    assert found is not None, said
    map_file.write_text(github_events.MAP.replace('"1m"', f'"{found[1]}"'))
    with running("try", map_file, file, "--seconds", "0") as process:
        said, _ = process.communicate(timeout=SECONDS_MAX)
        assert process.returncode == 0, said
    assert "too late" not in said


def test_a_wrong_unit_of_time_is_named(map_file: Path, tmp_path: Path) -> None:
    """Seconds that are taken for milliseconds give answers of January 1970."""
    made = [{**event, "created_at": 1_709_251_200} for event in github_events.events(20)]
    file = tmp_path / "events.ndjson"
    file.write_bytes(github_events.lines(made))
    with running("try", map_file, file, "--seconds", "0") as process:
        said, _ = process.communicate(timeout=SECONDS_MAX)
    assert 'if they are seconds, set time_unit = "s" in the map\'s source github' in said


def test_a_file_of_other_events_ends_with_the_way_to_mend_it(
    map_file: Path, tmp_path: Path
) -> None:
    """Exit code 1: none of them is on a layer."""
    file = tmp_path / "events.ndjson"
    file.write_bytes(b'{"time":"2024-03-01T00:00:00Z","kind":"push"}\n')
    with running("try", map_file, file) as process:
        said, _ = process.communicate(timeout=SECONDS_MAX)
        assert process.returncode == 1
    assert "error: cannot show an answer: none of 1 events is on any layer" in said
    assert "missing required field `created_at`" in said


def test_wrong_input_is_told_before_anything_starts(map_file: Path, tmp_path: Path) -> None:
    """A map that is wrong, a file that is missing, a source that is not told."""

    def message(*arguments: str | Path) -> str:
        return str(CliRunner().invoke(command, list(map(str, arguments))).exception)

    file = tmp_path / "events.ndjson"
    file.write_bytes(b"{}\n")
    assert "none: No such file" in message(map_file, tmp_path / "none")
    flights = ROOT / "app" / "demo" / "flights" / "map.toml"
    assert "want one of the map's sources flights, radar" in message(flights, file)
    assert "got nothing" in message(flights, file, "--source", "nothing")
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(github_events.MAP.replace('time = "created_at"', ""))
    assert "cannot use map" in message(wrong, file)
