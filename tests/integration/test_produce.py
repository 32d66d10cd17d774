"""``produce``: files are in the topic as they are, under their keys, and what is wrong is said."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aiokafka
import polars as pl
import pytest
from aiokafka.structs import ConsumerRecord
from click.testing import CliRunner, Result

from agents.decode.records import Decoder
from app.cluster.topics import apply_topics
from app.commands.produce import command
from app.kafka.batch_producer import partition_of
from app.load.input_file import InputFile
from app.load.produce import Production, Written
from app.load.produce import produce as run_production
from app.load.replay import settled_ms
from app.mapfile.load import load_map
from tables.model.layer import Map
from tables.record.chunk import Run
from tables.record.heartbeat import HEARTBEAT_HEADER, decode_heartbeat
from tests import ROOT
from tests.support import github_events

PARTITIONS = 3
_NUMBERS = itertools.count()


@pytest.fixture
def map_file(tmp_path: Path) -> Path:
    """Give a map whose names nobody else has."""
    name = f"github{next(_NUMBERS)}"
    file = tmp_path / "map.toml"
    text = github_events.MAP.replace('name = "github"', f'name = "{name}"')
    file.write_text(text.replace("github.raw", f"{name}.raw"))
    return file


@pytest.fixture
def themap(map_file: Path, embedded: str) -> Map:
    """Give the map, whose topics are there."""
    themap = load_map(map_file)
    asyncio.run(apply_topics(embedded, themap))
    return themap


@pytest.fixture
def produce(embedded: str, themap: Map) -> Callable[..., Result]:
    """Run the command for the map's topic."""

    def run(*arguments: str | Path) -> Result:
        given = [themap.sources[0].topic, *map(str, arguments), "--brokers", embedded]
        return CliRunner().invoke(command, given)

    return run


async def _records(brokers: str, topic: str) -> list[ConsumerRecord]:
    places = [aiokafka.TopicPartition(topic, number) for number in range(PARTITIONS)]
    async with aiokafka.AIOKafkaConsumer(bootstrap_servers=brokers) as consumer:
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        found: list[ConsumerRecord] = []
        while True:
            for records in (await consumer.getmany(timeout_ms=50)).values():
                found += records
            ends = [consumer.highwater(place) for place in places]
            at = [await consumer.position(place) for place in places]
            if ends == at:
                return found


def records_of(brokers: str, themap: Map) -> dict[int, list[ConsumerRecord]]:
    """Return the records of the topic by partition, in their order."""
    found = asyncio.run(_records(brokers, themap.sources[0].topic))
    found.sort(key=lambda record: (record.partition, record.offset))
    return {n: [r for r in found if r.partition == n] for n in range(PARTITIONS)}


def values_of(records: dict[int, list[ConsumerRecord]]) -> list[bytes]:
    """Return all values that are not heartbeats."""
    return [r.value for own in records.values() for r in own if r.value is not None]


def test_lines_are_records_under_the_key_of_the_map(
    embedded: str, themap: Map, map_file: Path, tmp_path: Path, produce: Callable[..., Result]
) -> None:
    """In the order of the file, in the partition that any producer of Kafka chooses."""
    made = github_events.events(300)
    file = tmp_path / "events.ndjson"
    file.write_bytes(github_events.lines(made))
    result = produce(file, "--map", map_file)
    assert result.exit_code == 0, result.output
    assert f"wrote 300 events in 300 records to {themap.sources[0].topic}" in result.stdout
    assert "checked as events of source github: " in result.stdout
    records = records_of(embedded, themap)
    for partition, own in records.items():
        of_partition = [
            event
            for event in made
            if partition_of(event["repo"]["name"].encode(), PARTITIONS) == partition
        ]
        assert [record.value for record in own] == [
            json.dumps(event).encode() for event in of_partition
        ]
        assert [record.key for record in own] == [
            event["repo"]["name"].encode() for event in of_partition
        ]


def test_without_key_partitions_get_even_shares(
    embedded: str, themap: Map, tmp_path: Path, produce: Callable[..., Result]
) -> None:
    """And several paths are one key; an event without one of them is told."""
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"".join(b'{"n":%d}\n' % n for n in range(300)))
    assert produce(file).exit_code == 0
    assert {len(own) for own in records_of(embedded, themap).values()} == {100}
    file.write_bytes(b'{"a":{"b":"x"},"n":7}\n{"n":8}\n')
    result = produce(file, "--key", "n", "--key", "a.b")
    assert "warning: 1 events have no value at n, a.b" in result.stderr
    records = records_of(embedded, themap)[partition_of(b"7|x", PARTITIONS)]
    assert b"7|x" in [record.key for record in records]


def test_the_worker_would_refuse_what_the_check_says(
    map_file: Path, tmp_path: Path, themap: Map, embedded: str, produce: Callable[..., Result]
) -> None:
    """With an example of each reason; all of it is written nevertheless."""
    good = github_events.events(30)
    bad = [
        b'{"id":"1"', b'{"id":"2","created_at":"2024-03-01T00:00:00Z"}',
        b'{"type":"PushEvent","created_at":"2024-03-01T00:00:00Z","actor":{"login":"x"}}',
        b'{"type":"PushEvent","created_at":"yesterday"}',
        b'{"type":"PushEvent","created_at":"2999-03-01T00:00:00Z"}',
        github_events.lines(github_events.events(1)).strip().replace(b"user-0", b"u" * 2_000),
    ]  # fmt: skip
    file = tmp_path / "events.ndjson"
    file.write_bytes(github_events.lines(good) + b"\n".join(bad))
    result = produce(file, "--map", map_file)
    assert result.exit_code == 0
    forks = sum(event["type"] == "ForkEvent" for event in good)
    assert f": {30 - forks:,} of 36 are usable" in result.stdout
    assert "refused as json: 1, first event 31: " in result.stdout
    assert "refused as missing: 2, first event 32: " in result.stdout
    assert "refused as out_of_range: 1, first event 34: " in result.stdout
    assert "refused as future: 1, first event 35: " in result.stdout
    assert "refused as key_too_long: 1, first event 36: key field login of " in result.stdout
    assert f"no layer selects {forks}: ForkEvent ({forks})" in result.stdout
    assert bad[0].decode() in result.stdout
    assert set(bad) < set(values_of(records_of(embedded, themap)))


@pytest.mark.parametrize("form", ["ndjson", "arrow"])
def test_records_of_many_events_hold_the_same_events(
    form: str, map_file: Path, themap: Map, embedded: str, produce: Callable[..., Result]
) -> None:
    """Of a Parquet file; the worker's own decoder reads them back."""
    made = github_events.events(2_000)
    file = map_file.with_name("events.parquet")
    pl.DataFrame(made, infer_schema_length=None).with_columns(
        pl.col("created_at").str.to_datetime("%+")
    ).write_parquet(file)
    result = produce(file, "--map", map_file, "--format", form)
    assert result.exit_code == 0, result.output
    assert "wrote 2,000 events in " in result.stdout
    values = values_of(records_of(embedded, themap))
    assert len(values) < 100
    run = Run("t", 0, 0, len(values), range(len(values)), [*values], [0] * len(values), {})
    frame = Decoder(themap.sources[0]).decode([run]).frame
    found = frame.select(".id", "repo", "login", "size", "time").sort(".id").rows()
    assert found == [
        (
            event["id"], event["repo"]["name"], event["actor"]["login"],
            event["payload"].get("size"),
            int((github_events.START.timestamp() + 300 * number) * 1_000),
        )
        for number, event in enumerate(made)
    ]  # fmt: skip


def flat_file(file: Path) -> list[tuple[str, str]]:
    """Write events without objects; return their ids and types."""
    made = [(f"id-{number}", f'Kind {number % 3}, "x"') for number in range(1_200)]
    columns = {"id": [one for one, _ in made], "type": [kind for _, kind in made]}
    times = {"created_at": ["2024-01-02T03:04:05Z"] * len(made)}
    pl.DataFrame(columns | times).write_csv(file)
    return made


@pytest.mark.parametrize("declared", ["", "columns"])
def test_records_of_csv_are_read_as_they_are_declared(
    declared: str, embedded: str, themap: Map, tmp_path: Path
) -> None:
    """A header says the format if the map does not; of a source with columns no row has names."""
    file = tmp_path / "events.csv"
    made = flat_file(file)
    topic = themap.sources[0].topic
    map_file = tmp_path / "flat.toml"
    columns = '{name = "csv", columns = ["created_at", "other", "id", "type"]}'
    map_file.write_text(
        f'revision = 1\nname = "flat"\n[sources.flat]\ntopic = "{topic}"\npartitions ='
        f' {themap.sources[0].partitions}\ntime = "created_at"\ntype = "type"\nid = "id"\n'
        f'{f"format = {columns}" if declared else ""}\n[sources.flat.fields]\ntype = "string"\n'
        '[layers.kinds]\nsource = "flat"\nevents = ["**"]\nkey = ["type"]\nwindow = "1h"\n'
        'measures = ["count"]\n'
    )
    options = [topic, str(file), "--brokers", embedded, "--map", str(map_file), "--format", "csv"]
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 0, result.output
    assert ": 1,200 of 1,200 are usable" in result.stdout
    found = []
    source = load_map(map_file).sources[0]
    for own in records_of(embedded, themap).values():
        values = [record.value for record in own if record.value]
        run = Run("t", 0, 0, len(values), range(len(values)), [*values], [0] * len(values), {})
        run.headers = {n: record.headers for n, record in enumerate(own) if record.headers}
        assert bool(run.headers) is not bool(declared)
        found += Decoder(source).decode([run]).frame.select(".id", "type").rows()
    assert sorted(found) == sorted(made)


def test_settling_closes_the_windows_of_the_last_event(
    embedded: str, themap: Map, map_file: Path, tmp_path: Path, produce: Callable[..., Result]
) -> None:
    """Every partition ends with the heartbeat of the time when no window can change any more."""
    made = github_events.events(50)
    file = tmp_path / "events.json"
    file.write_text(json.dumps(made))
    result = produce(file, "--map", map_file, "--settle")
    assert result.exit_code == 0, result.output
    last_ms = int((github_events.START.timestamp() + 300 * 49) * 1_000)
    for own in records_of(embedded, themap).values():
        headers = dict(own[-1].headers)
        time_ms = decode_heartbeat(headers[HEARTBEAT_HEADER])
        assert time_ms == settled_ms(themap, "github", last_ms, margin_ms=0)
    made[0]["created_at"] = github_events.text_of(dt.datetime.now(dt.UTC))
    file.write_text(json.dumps(made))
    result = produce(file, "--map", map_file, "--settle")
    assert "its longest window ends in the future" in str(result.exception)


def test_standard_input_is_written_while_it_comes(embedded: str, themap: Map) -> None:
    """The first lines are there before the input ends; the rate holds others back."""
    topic = themap.sources[0].topic
    arguments = [sys.executable, "-m", "app", "produce", topic, "-", "--brokers", embedded]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b'{"n":1}\n{"n":')
        process.stdin.flush()
        while not values_of(records_of(embedded, themap)):
            assert process.poll() is None
        process.stdin.write(b"2}")
        said, _ = process.communicate(timeout=60)
    assert b"wrote 2 events in 2 records" in said
    assert sorted(values_of(records_of(embedded, themap))) == [b'{"n":1}', b'{"n":2}']


def test_what_cannot_be_written_says_what_to_do(
    embedded: str, themap: Map, map_file: Path, tmp_path: Path, produce: Callable[..., Result]
) -> None:
    """A topic that is missing, one of no source, options that do not go together."""
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"{}\n")
    missing = CliRunner().invoke(command, ["nowhere", str(file), "--brokers", embedded])
    assert "cannot write to nowhere: it is not there" in str(missing.exception)
    assert "map apply FILE" in str(missing.exception)
    of_none = ["nowhere", str(file), "--brokers", embedded, "--map", str(map_file)]
    assert "it is not a source of the map" in str(CliRunner().invoke(command, of_none).exception)
    assert "cannot write" in str(produce(file, "--format", "arrow").exception)
    nested = tmp_path / "nested.parquet"
    pl.DataFrame({"n": [{"a": 1}]}).write_parquet(nested)
    said = str(produce(nested, "--format", "csv").exception)
    assert "as csv: got objects or lists in n; want" in said
    assert "--settle without --map" in produce(file, "--settle").stderr
    assert "--key with --map" in produce(file, "--key", "a", "--map", map_file).stderr
    assert not values_of(records_of(embedded, themap))


async def test_a_rate_cuts_events_into_steps_that_are_due_one_by_one(
    embedded: str, themap: Map, tmp_path: Path
) -> None:
    """Each has the events of 50 ms, and none is left out."""
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"".join(b'{"n":%d}\n' % n for n in range(23)))
    topic = themap.sources[0].topic
    steps: list[int] = []
    written = Written()
    plan = Production(embedded, topic, [InputFile(str(file))], rate=100.0)
    await run_production(plan, written, lambda: steps.append(written.events))
    assert steps == [5, 10, 15, 20, 23]
