"""A load in a topic equals its manifest, recounted from the topic by other means."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

import aiokafka
import fastavro
import polars as pl
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import ConsumerRecord
from click.testing import CliRunner

from app.commands.generate import command
from app.kafka.batch_producer import partition_of
from app.load.plan import MAP_FILE
from app.mapfile.load import load_map
from tables.model.ledger import imbalances
from tables.model.window import time_text
from tables.record.heartbeat import HEARTBEAT_HEADER
from tests import ROOT

TOPIC = "shop.raw"
PARTITIONS = 8
# The example's base layers, by the first level of their types: name, lateness, key.
LAYERS = {
    "order": ("orders_minute", 2_000, 300_000, ("store", "region")),
    "payment": ("payments_minute", 2_000, 300_000, ("store",)),
    "click": ("clicks_minute", 5_000, 60_000, ("store", "online")),
}
MINUTE_MS = 60_000
MAP_OF_ONE = """
revision = 1
name = "own"
[sources.scans]
topic = "scans.raw"
partitions = 1
time = "at"
type = "type"
[sources.scans.fields]
k = "string"
[layers.hour]
source = "scans"
events = ["**"]
key = ["k"]
window = "1h"
measures = ["count"]
"""


async def make_topic(brokers: str) -> None:
    """Make the example's topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
    await admin.close()


async def read_topic(brokers: str) -> dict[int, list[ConsumerRecord]]:
    """Return everything that stands in the topic, by partition."""
    async with aiokafka.AIOKafkaConsumer(
        bootstrap_servers=brokers, auto_offset_reset="earliest", max_partition_fetch_bytes=1 << 22
    ) as consumer:
        places = [aiokafka.TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        records: dict[int, list[ConsumerRecord]] = {number: [] for number in range(PARTITIONS)}
        while any(len(records[place.partition]) < ends[place] for place in places):
            for place, got in (await consumer.getmany(timeout_ms=1_000)).items():
                records[place.partition] += got
    return records


def run(brokers: str, manifest: Path, *options: str) -> dict[str, Any]:
    """Run the command as people do; return the manifest."""
    arguments = ["--brokers", brokers, "--manifest", str(manifest), *options]
    done = subprocess.run(
        [sys.executable, "-m", "app", "generate", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    content: dict[str, Any] = json.loads(manifest.read_bytes())
    return content


def interrupt_a_load(broker: str, path: Path) -> None:
    """Start a long load, wait for its first progress, press Ctrl-C and wait for its end."""
    with subprocess.Popen(
        [
            sys.executable, "-m", "app", "generate", "--brokers", broker, "--manifest", str(path),
            "--rate", "2000", "--seconds", "600", "--processes", "2",
        ],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"}, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert "events" in process.stderr.readline()
        # As a terminal does it: to the whole group.
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0


def events_of(record: ConsumerRecord) -> list[dict[str, Any]]:
    """Return the good events of a record, however they are encoded."""
    value = record.value
    if ("content-type", b"text/csv") in record.headers:
        return pl.read_csv(value, schema_overrides={"amount_cents": pl.Int64}).to_dicts()
    if value.startswith(b"Obj\x01"):
        return cast("list[dict[str, Any]]", list(fastavro.reader(io.BytesIO(value))))
    if value.startswith(b"\xff\xff\xff\xff"):
        return pl.read_ipc_stream(value).to_dicts()
    return [json.loads(line) for line in value.split(b"\n")]


def recount(records: list[ConsumerRecord]) -> tuple[Counter[str], int]:
    """Return ledger and stream time of a partition without bad input, event by event."""
    counts: Counter[str] = Counter()
    time_ms = -(2**62)
    for record in records:
        if record.value is None:
            counts["records.heartbeat"] += 1
            time_ms = max(time_ms, int(dict(record.headers)[HEARTBEAT_HEADER]))
            continue
        counts["records.with_events"] += 1
        for event in events_of(record):
            counts["events.decoded"] += 1
            counts["events.classified"] += 1
            name, disorder_ms, lateness_ms, _ = LAYERS[event["type"].split(".")[0]]
            counts[f"layer.{name}.selected"] += 1
            end_ms = event["at"] // MINUTE_MS * MINUTE_MS + MINUTE_MS
            amount = event["amount_cents"]
            if name == "payments_minute" and (amount is None or amount < 0):
                counts[f"layer.{name}.filtered"] += 1
            elif end_ms <= time_ms - disorder_ms - lateness_ms:
                counts[f"layer.{name}.too_late"] += 1
            else:
                counts[f"layer.{name}.folded"] += 1
            time_ms = max(time_ms, event["at"])
    return counts, time_ms


@pytest.mark.parametrize("form", ["json", "ndjson", "arrow", "mixed"])
async def test_a_manifest_equals_a_recount_of_the_topic(
    broker: str, tmp_path: Path, form: str
) -> None:
    """Two processes, late events among others; each partition has its keys only, in its order."""
    await make_topic(broker)
    manifest = run(
        broker, tmp_path / "m.json", "--rate", "8000", "--seconds", "1", "--late", "0.05",
        "--format", form, "--batch", "50", "--processes", "2", "--keys", "60", "--speed", "120",
    )  # fmt: skip
    found = await read_topic(broker)
    for number, records in found.items():
        counts, time_ms = recount(records)
        told = manifest["partitions"][str(number)]
        assert told["ledger"] == dict(counts)
        assert told["stream_time_ms"] == time_ms == manifest["settled_ms"]
        assert (told["first"], told["end"]) == (0, len(records))
        for record in records:
            if record.value is not None:
                assert partition_of(record.key, PARTITIONS) == number
                stores = {event["store"].encode() for event in events_of(record)}
                assert record.key in stores
    assert manifest["events"] == 8_000
    assert manifest["processes"] == 2
    assert manifest["layers"]["orders_minute"]["too_late"] > 0
    assert manifest["layers"]["orders_minute"]["late"] > 0
    assert manifest["disturbed"] == []


async def test_a_load_with_bad_input_adds_up_and_seals_every_window(
    broker: str, tmp_path: Path
) -> None:
    """The records equal those of the topic, and the last heartbeat lies past the last day."""
    await make_topic(broker)
    manifest = run(
        broker, tmp_path / "m.json", "--rate", "6000", "--seconds", "1", "--bad", "0.1",
        "--format", "mixed", "--processes", "1",
    )  # fmt: skip
    found = await read_topic(broker)
    names = [name for name, *_ in LAYERS.values()]
    for number, records in found.items():
        told = manifest["partitions"][str(number)]
        assert told["end"] == len(records)
        assert imbalances(told["ledger"], len(records), names) == []
        no_value = [record for record in records if record.value is None]
        counted = ("records.heartbeat", "records.tombstone", "unreadable.heartbeat")
        assert len(no_value) == sum(told["ledger"].get(name, 0) for name in counted)
    bad = sum(manifest["bad"].values())
    # Of 6,000 records each is bad by chance, one in ten: 600 with a deviation of 23. More than 200
    # off is as likely as 1 in 10**17.
    assert 400 < bad < 800
    assert bad == sum(manifest["dead_letters"].values())
    day_ms = 86_400_000
    end_ms = manifest["options"]["start_ms"] + 1_000
    assert manifest["settled_ms"] >= end_ms // day_ms * day_ms + day_ms


@pytest.mark.slow
@pytest.mark.kafka
async def test_a_real_broker_takes_every_kind(kafka: str, tmp_path: Path) -> None:
    """Oversized records too, since they are small once compressed; and no request twice."""
    await make_topic(kafka)
    manifest = run(
        kafka, tmp_path / "m.json", "--rate", "6000", "--seconds", "2", "--bad", "0.1",
        "--late", "0.05", "--format", "mixed", "--processes", "2",
    )  # fmt: skip
    assert manifest["disturbed"] == []
    assert manifest["ledger"]["records.oversized"] > 0
    for number, records in (await read_topic(kafka)).items():
        assert manifest["partitions"][str(number)]["end"] == len(records)


async def test_a_topic_with_records_is_refused_unless_told_otherwise(
    broker: str, tmp_path: Path
) -> None:
    """The offsets go on with --append, and the number of late events is said to be unknown."""
    await make_topic(broker)
    path = tmp_path / "m.json"
    options = ("--rate", "500", "--seconds", "0.5", "--processes", "1", "--no-settle")
    first = run(broker, path, *options)
    assert first["late"] == "known"
    assert first["settled_ms"] is None
    arguments = ["--brokers", broker, "--manifest", str(path), *options]
    result = await asyncio.to_thread(CliRunner().invoke, command, arguments)
    assert "it holds records" in str(result.exception)
    again = run(broker, path, *options, "--append")
    assert again["late"] == "unknown"
    for number, told in again["partitions"].items():
        assert told["first"] == first["partitions"][number]["end"]


async def test_an_appended_load_comes_after_the_last_heartbeat(broker: str, tmp_path: Path) -> None:
    """A load that settled has closed all windows: earlier events would all be late, unsaid."""
    await make_topic(broker)
    path = tmp_path / "m.json"
    options = ["--rate", "500", "--seconds", "0.5", "--processes", "1"]
    settled = time_text(run(broker, path, *options)["settled_ms"])

    def append(*more: str) -> str:
        arguments = ["--brokers", broker, "--manifest", str(path), *options, "--append", *more]
        done = subprocess.run(
            [sys.executable, "-m", "app", "generate", *arguments],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    later = await asyncio.to_thread(append, "--no-settle")
    assert later.startswith(f"event times go from {settled} to ")
    assert "warning" not in later
    run(broker, path, *options, "--append")
    earlier = await asyncio.to_thread(append, "--start", "1600000000000")
    assert earlier.startswith("event times go from 2020-09-13T12:26:40Z to 2020-09-13T12:26:40.5")
    assert "events before it come too late" in earlier


def test_the_map_of_the_settings_is_the_default(tmp_path: Path) -> None:
    """Its one source too; a map with several names them."""
    file = tmp_path / "own.toml"
    file.write_text(MAP_OF_ONE)
    arguments = ["--brokers", "127.0.0.1:1", "--manifest", str(tmp_path / "m.json")]
    given = {"TREASURE_MAP_MAP_FILE": str(file)}
    result = CliRunner().invoke(command, arguments, env=given)
    assert "cannot generate events into scans.raw" in str(result.exception)
    result = CliRunner().invoke(command, [*arguments, "--source", "shop"], env=given)
    assert f"change --source, or --map, which is {file}" in str(result.exception)


async def test_an_interrupt_ends_in_order_with_a_manifest(broker: str, tmp_path: Path) -> None:
    """Events that were written until then are settled and counted."""
    await make_topic(broker)
    path = tmp_path / "m.json"
    interrupt_a_load(broker, path)
    manifest = json.loads(path.read_bytes())
    assert manifest["stopped"] is True
    assert manifest["events"] > 0
    for number, records in (await read_topic(broker)).items():
        told = manifest["partitions"][str(number)]
        counts, time_ms = recount(records)
        assert told["ledger"] == dict(counts)
        assert time_ms == manifest["settled_ms"]


async def test_fewer_events_than_steps_and_keys_than_processes_are_written(
    broker: str, tmp_path: Path
) -> None:
    """One key is one process's, and a step may have no event."""
    await make_topic(broker)
    manifest = run(
        broker, tmp_path / "m.json", "--rate", "4", "--seconds", "1", "--keys", "1",
        "--processes", "3",
    )  # fmt: skip
    assert (manifest["events"], manifest["processes"]) == (4, 1)
    assert manifest["ledger"]["records.heartbeat"] == 2 * PARTITIONS


def test_a_topic_that_is_not_there_is_said_with_what_to_do(broker: str, tmp_path: Path) -> None:
    """The map's topics have to be made first."""
    arguments = ["--brokers", broker, "--manifest", str(tmp_path / "m.json")]
    result = CliRunner().invoke(command, arguments)
    assert "python -m app map apply" in str(result.exception)
    assert not (tmp_path / "m.json").exists()


def test_the_recount_knows_the_examples_layers() -> None:
    """The layers above are those of the map."""
    found = {
        layer.events[0].split(".")[0]: (
            layer.name,
            layer.max_out_of_orderness_ms,
            layer.allowed_lateness_ms,
            tuple(field.name for field in layer.key),
        )
        for layer in load_map(MAP_FILE).base_layers("shop")
    }
    assert found == LAYERS


def test_duplicates_of_events_without_ids_are_refused(broker: str, tmp_path: Path) -> None:
    """The example's source has no id."""
    arguments = ["--brokers", broker, "--manifest", str(tmp_path / "m.json")]
    result = CliRunner().invoke(command, [*arguments, "--duplicates", "0.1"])
    assert "its events have no id" in str(result.exception)
