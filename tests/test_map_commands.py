"""The map commands, as a person runs them."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.commands.map import command
from app.embedded_broker import EmbeddedBroker
from app.mapfile import load_map
from tables.archive_cql import LayerTable
from tables.errors import ArchiveError, MapError, SettingError, TreasureMapError

ROOT = Path(__file__).parent.parent
FLIGHTS = ROOT / "examples" / "flights" / "map.toml"


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    """Run an embedded broker; give its bootstrap address."""
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


@pytest.fixture
def own_map(tmp_path: Path) -> Path:
    """Give the map of the demo under names and topics that no other test has."""
    name = f"m{uuid.uuid4().hex[:8]}"
    text = FLIGHTS.read_text().replace('name = "flights"', f'name = "{name}"')
    text = text.replace('"flights.raw"', f'"{name}.flights"').replace(
        '"radar.raw"', f'"{name}.radar"'
    )
    path = tmp_path / "map.toml"
    path.write_text(text)
    return path


def run(*arguments: str | Path) -> Result:
    """Run a map command that is to work."""
    result = CliRunner().invoke(
        command, [str(one) for one in arguments], catch_exceptions=False, prog_name="map"
    )
    assert result.exit_code == 0, result.output
    return result


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the program as its own process."""
    return subprocess.run(
        [sys.executable, "-m", "app", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_check_says_ok_with_counts() -> None:
    """One line that says what the map holds."""
    digest = load_map(FLIGHTS).digest
    assert run("check", FLIGHTS).stdout == (
        f"ok: map flights, revision 1, digest {digest}: 2 sources, 14 layers "
        "(8 made from finer ones), 11 input topics\n"
    )


def test_check_lists_all_problems_and_exits_with_1(tmp_path: Path) -> None:
    """Every problem with its place on standard error, no traceback, exit code 1."""
    path = tmp_path / "map.toml"
    text = FLIGHTS.read_text()
    text = text.replace('window = "5s"', 'window = "7s"').replace("time = ", "tim = ", 1)
    path.write_text(text)
    done = python("map", "check", path)
    assert (done.returncode, done.stdout) == (1, "")
    first, *lines = done.stderr.splitlines()
    assert first == f"error: cannot use map {path}: 3 problem(s)"
    assert [line.split(": ")[0] for line in lines] == [
        "  - sources.flights.time",
        "  - sources.flights.tim",
        "  - layers.contacts_minute.window",
    ]


def test_check_and_show_import_no_client_of_a_server() -> None:
    """A map is checked in a moment, on a machine that has neither Kafka nor Cassandra."""
    program = (
        "import sys; from app.__main__ import group\n"
        f"for verb in 'check', 'show': group(['map', verb, {str(FLIGHTS)!r}], None, None, False)\n"
        "loaded = {'aiokafka', 'cassandra', 'faust'} & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_show_draws_every_layer_below_what_it_is_made_from() -> None:
    """Deeper in the tree means coarser; each layer says its window, key, topics and table."""
    lines = run("show", FLIGHTS).stdout.splitlines()
    themap = load_map(FLIGHTS)
    place = {
        layer.name: next(
            (number, line.index(layer.name))
            for number, line in enumerate(lines)
            if f"{layer.name}  per " in line
        )
        for layer in themap.layers
    }
    for layer in themap.layers:
        number, indent = place[layer.name]
        if layer.finer is not None:
            above, outer = place[layer.finer]
            assert number > above
            assert indent > outer
        key = ", ".join(field.name for field in layer.key)
        assert lines[number].endswith(f"{layer.name}  per {layer.window} by {key}")
        below = [line[indent:] for line in lines[number : number + 7]]
        topic = themap.input_topic(layer)
        partitions = "1 partition)" if layer.partitions == 1 else f"{layer.partitions} partitions)"
        assert f"input    {topic} ({partitions}" in below
        assert f"journal  {themap.journal_topic(topic)}" in below
        assert f"archive  {LayerTable(themap, layer, 'any').name}" in below
        merged = "merged   from 4 source partitions, as the source is not keyed by part of its key"
        assert (merged in below) == layer.merged


def test_show_names_the_feed_of_a_published_layer(tmp_path: Path) -> None:
    """With its partitions and its form; other layers have no such line."""
    text = FLIGHTS.read_text().replace(
        "[layers.arrivals_day]", "[layers.arrivals_day]\npublish = true"
    )
    path = tmp_path / "map.toml"
    path.write_text(text)
    lines = [line.strip("│ ") for line in run("show", path).stdout.splitlines()]
    feeds = [line for line in lines if line.startswith("feed ")]
    assert feeds == ["feed     flights.feed.arrivals_day (4 partitions, json)"]
    assert "feed " not in run("show", FLIGHTS).stdout


def test_show_draws_every_source_with_its_topic() -> None:
    """What producers key by, and how many partitions there are."""
    output = run("show", FLIGHTS).stdout
    assert "flights  source keyed by origin" in output
    assert "topic    radar.raw (2 partitions)" in output
    assert "journal  flights.journal.radar.raw" in output


@pytest.mark.parametrize("verb", ["check", "show", "apply"])
def test_a_file_that_is_not_there_is_an_error(verb: str, tmp_path: Path) -> None:
    """All commands read the map first."""
    with pytest.raises(MapError, match="No such file"):
        run(verb, tmp_path / "none.toml")


def test_apply_makes_the_topics_and_says_which(own_map: Path, brokers: str) -> None:
    """The first time each is named; the second time nothing is made."""
    first = run("apply", own_map, "--brokers", brokers)
    created = [line for line in first.stdout.splitlines() if line.startswith("created topic ")]
    # Eleven inputs, as many journals, two side topics.
    assert len(created) == 24
    assert "topics: 24 created with 1 copy of each partition, 0 existed" in first.stdout
    assert first.stderr == ""
    again = run("apply", own_map, "--brokers", brokers)
    assert "topics: 0 created with 1 copy of each partition, 24 existed" in again.stdout
    assert "archive: embedded, nothing to make" in again.stdout


def test_apply_refuses_topics_that_differ(own_map: Path, brokers: str) -> None:
    """A map whose partitions changed does not fit the topics any more: exit 1, all named."""
    run("apply", own_map, "--brokers", brokers)
    own_map.write_text(own_map.read_text().replace("partitions = 4", "partitions = 5"))
    done = python("map", "apply", own_map, "--brokers", brokers)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot apply topics of map ")
    # The source, its journal and the side topics, which are as wide as the widest source.
    assert done.stderr.count("wrong number of partitions; got 4; want 5") == 4


def test_apply_takes_its_settings_from_the_environment(own_map: Path, brokers: str) -> None:
    """Flags are one of the places that settings come from."""
    result = CliRunner().invoke(
        command,
        ["apply", str(own_map)],
        env={"TREASURE_MAP_BROKERS": brokers},
        catch_exceptions=False,
    )
    assert "topics: 24 created" in result.stdout


def test_apply_refuses_a_keyspace_over_other_data_centres(own_map: Path, brokers: str) -> None:
    """It is refused before any topic is made."""
    arguments = ("apply", own_map, "--brokers", brokers, "--archive", "cassandra")
    with pytest.raises(SettingError, match="cannot make keyspace treasure_map"):
        run(*arguments, "--cassandra-replication", "east:3,west:3")
    assert "0 existed" in run("apply", own_map, "--brokers", brokers).stdout


def test_apply_refuses_certificates_that_cannot_be_read(own_map: Path, tmp_path: Path) -> None:
    """The message says which settings to check."""
    with pytest.raises(SettingError, match=r"cannot use TLS files for Kafka: .*kafka_ca_file"):
        run("apply", own_map, "--kafka-ca-file", tmp_path / "none.pem")


@pytest.mark.cassandra
def test_apply_makes_and_checks_the_tables_of_cassandra(
    own_map: Path, brokers: str, cassandra: tuple[str, int]
) -> None:
    """Tables are made once and checked after; a layer that differs from its table is refused."""
    host, port = cassandra
    keyspace = f"k{uuid.uuid4().hex[:8]}"
    arguments = (
        "apply", own_map, "--brokers", brokers, "--archive", "cassandra",
        "--cassandra-hosts", host, "--cassandra-port", str(port), "--cassandra-keyspace", keyspace,
    )  # fmt: skip
    for _ in range(2):
        output = run(*arguments).stdout
        assert f"archive: 14 tables in keyspace {keyspace} made or checked" in output
    text = own_map.read_text().replace("[layers.arrivals_day]", "[layers.arrivals_day]\nslots = 3")
    own_map.write_text(text)
    with pytest.raises(ArchiveError, match="slots"):
        run(*arguments)


def test_apply_without_a_broker_is_an_operating_error(own_map: Path) -> None:
    """Port 1 of this machine serves nobody."""
    with pytest.raises(TreasureMapError, match=r"cannot apply topics at brokers 127\.0\.0\.1:1: "):
        run("apply", own_map, "--brokers", "127.0.0.1:1")
