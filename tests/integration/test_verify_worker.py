"""Verify on real workers: their results equal a recomputation from their topics."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.config.settings import load_settings
from app.load.plan import MAP_FILE
from app.verify import verify
from tests.support.cluster import Cluster, Worker
from tests.support.common import HOUR_MS, flight
from tests.support.protobuf import MESSAGE, broken, descriptor_set, message_of
from tests.support.waiting import until
from tests.support.worker_process import Process, apply

MERGED_MAP = """
revision = 1
name = "yard"
[sources.scans]
topic = "yard.raw"
partitions = 4
time = "at"
type = "type"
keyed_by = ["truck"]
future_skew = "400d"
[sources.scans.fields]
truck = "string"
gate = "string"
weight = "float"
pallets = "int"
[layers.by_truck]
source = "scans"
events = ["scan.*"]
key = ["truck"]
window = "1m"
allowed_lateness = "2m"
measures = ["count", "mean(weight)", "variance(weight)", "variance(pallets)"]
[layers.by_gate]
source = "scans"
events = ["scan.in", "move.**"]
where = [{ field = "pallets", op = ">", value = 0 }]
key = ["gate"]
window = "5m"
allowed_lateness = "1m"
measures = ["count", "sum(pallets)", "min(weight)", "max(pallets)", "variance(pallets)"]
partitions = 3
[layers.by_gate_month]
from = "by_gate"
key = ["gate"]
window = "month"
measures = ["count", "sum(pallets)", "min(weight)"]
partitions = 2
[layers.by_gate_year]
from = "by_gate_month"
key = ["gate"]
window = "year"
partitions = 1
"""


async def answer(workers: Sequence[Worker]) -> None:
    """Return once all of them answer; on a busy machine a start takes longer than the input."""

    async def all_answer() -> bool:
        ledgers = [await asyncio.to_thread(worker.get, "ledger") for worker in workers]
        return None not in ledgers

    await until(all_answer, 60)


def nested_text(text: str) -> str:
    """Return the load generator's map with time, type and all fields deep in events."""
    for role, name in (("time", "at"), ("type", "type")):
        text = text.replace(f'{role} = "{name}"', f'{role} = {{path = "meta.{name}"}}')
    before, fields, after = re.split(r"(\[sources\.shop\.fields\]\n.*?\n\n)", text, flags=re.DOTALL)
    path = r'\1 = {path = "payload.Maße.\1", type = "\2"}'
    return before + re.sub(r'(?m)^(\w+) = "(\w+)"$', path, fields) + after


def csv_text(text: str) -> str:
    """Return the load generator's map with CSV as the format of records without a header."""
    fields = re.search(r"\[sources\.shop\.fields\]\n(.*?)\n\n", text, re.DOTALL)
    assert fields is not None
    names = sorted({"at", "type", *re.findall(r"(?m)^(\w+) = ", fields[1])}, reverse=True)
    declared = f"format = {{name = 'csv', columns = {names}, delimiter = ';'}}"
    return text.replace("[sources.shop]\n", f"[sources.shop]\n{declared}\n")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "nested", "csv"])
async def test_verify_finds_a_worker_equal_after_input_of_every_kind(
    broker: str, tmp_path: Path, kind: str
) -> None:
    """All forms, bad and late events; the recomputed ledger is the manifest's too."""
    map_file = tmp_path / "map.toml"
    text = MAP_FILE.read_text()
    text = nested_text(text) if kind == "nested" else csv_text(text) if kind == "csv" else text
    map_file.write_text(text)
    with Cluster(broker, tmp_path, map_file=map_file, archive="embedded") as cluster:
        worker = cluster.add()
        path = tmp_path / "manifest.json"
        await asyncio.to_thread(
            cluster.run, "generate", "--map", str(map_file), "--brokers", broker,
            "--manifest", str(path), "--rate", "10000", "--seconds", "2", "--speed", "300",
            "--bad", "0.02",
            "--late", "0.03", "--format", "mixed", "--batch", "100", "--processes", "2",
        )  # fmt: skip
        flags = {"map_file": str(map_file), "brokers": broker}
        settings = load_settings(flags | {"archive_folder": str(tmp_path / "archive")}, {})
        await answer([worker])
        report = await verify(settings, urls=[worker.url])
        assert report.equal, [str(one) for one in report.differences]
        assert all(layer.expected == layer.http for layer in report.layers)
        manifest = json.loads(path.read_bytes())
        assert report.ledger == manifest["ledger"]
        for number, told in manifest["partitions"].items():
            assert report.partitions[f"{manifest['topic']}[{number}]"] == told["ledger"]


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.cassandra
async def test_verify_finds_two_workers_on_kafka_and_cassandra_equal(
    kafka: str, cassandra: tuple[str, int], tmp_path: Path
) -> None:
    """A merged layer, coarser ones and floats; windows stay open at the end."""
    path = tmp_path / "map.toml"
    path.write_text(MERGED_MAP)
    given = {
        "archive": "cassandra", "cassandra_port": str(cassandra[1]), "cassandra_keyspace": "verify",
        "group": "verify",
    }  # fmt: skip
    with Cluster(kafka, tmp_path, map_file=path, **given) as cluster:
        workers = [cluster.add(), cluster.add()]
        await asyncio.to_thread(
            cluster.run, "generate", "--map", str(path), "--source", "scans", "--brokers", kafka,
            "--manifest", str(tmp_path / "manifest.json"), "--rate", "2000", "--seconds", "2",
            "--speed", "600", "--bad", "0.02", "--late", "0.05", "--processes", "1", "--no-settle",
        )  # fmt: skip
        settings = load_settings(given | {"map_file": str(path), "brokers": kafka}, {})
        await answer(workers)
        report = await verify(settings, urls=[worker.url for worker in workers])
        assert report.equal, [str(one) for one in report.differences]
        assert all(layer.http == layer.expected for layer in report.layers)
        assert report.ledger["layer.by_gate.partial.too_late"] > 0
        # Open windows are sent early once nothing comes.
        assert all(layer.archived == layer.expected > 0 for layer in report.layers)


REVISED = """

[layers.by_carrier]
source = "flights"
events = ["flight.*"]
key = ["carrier"]
window = "1h"
measures = ["count"]
partitions = 2

[layers.by_delay]
source = "flights"
events = ["flight.*"]
key = ["delay"]
window = "1h"
measures = ["count"]
partitions = 2

[layers.origins]
from = "hour"
key = ["origin"]
window = "1d"
measures = ["count", "sum(delay)"]
partitions = 1
"""


@pytest.mark.slow
async def test_verify_leaves_out_what_a_map_got_too_late_and_says_so(
    broker: str, tmp_path: Path
) -> None:
    """Layers and measures of a second revision; their values must be right, or null.

    Earlier events have null in a field that becomes the key of a merged layer.
    """
    worker = Process(broker, tmp_path / "worker")
    first = worker.map_file.read_text()
    topic = f"{worker.map_name}.raw"
    hours = range(0, 40 * HOUR_MS, HOUR_MS // 2)
    try:
        await apply(worker)
        worker.start()
        await worker.ready()
        delays = {0: 1, 1: None}
        early = ((p, flight(at, "AB"[p], delay=delays[p])) for at in hours for p in (0, 1))
        await worker.send(topic, *early)
        await quiet(worker, 2 * len(hours))
        assert await worker.stop() == 0
        second = first.replace("revision = 1", "revision = 2")
        second = second.replace('["count"]', '["count", "sum(delay)", "max(delay)"]') + REVISED
        worker.map_file.write_text(second)
        await apply(worker)
        worker.start()
        await worker.ready()
        later = range(40 * HOUR_MS, 120 * HOUR_MS, HOUR_MS // 2)
        await worker.send(topic, *((p, flight(at, "AB"[p])) for at in later for p in (0, 1)))
        await quiet(worker, 2 * len(hours) + 2 * len(later))
        settings = load_settings(worker.settings, {})
        url = f"http://127.0.0.1:{worker.port}"
        report = await verify(settings, urls=[url])
        assert report.equal, [str(one) for one in report.differences]
        expected = {layer.layer: layer.expected for layer in report.layers}
        assert expected == {"hour": 240, "day": 5, "by_carrier": 80, "by_delay": 80, "origins": 6}
        assert all(layer.http == layer.expected for layer in report.layers)
        notes = " | ".join(report.notes)
        assert "by_carrier was compared from 1970-01-02T15:30:00.001000+00:00 on" in notes
        assert "origins was compared from 1970-01-02" in notes
        assert "max_delay of hour is null in windows that start before 1970-01-02T15:30" in notes
        assert "sum_delay of day is null in windows that start before" in notes
        assert "hour was compared" not in notes
    finally:
        worker.close()


AS_THEY_COME = (
    ("partitions = 2", 'partitions = 2\ntime_unit = "s"\narrays = true\ncompression = "gzip"'),
    ('time = "at"', 'time = {path = "at", text = true, fraction = true, zone = "+01:00"}'),
    ('carrier = "string"', 'carrier = {type = "string", digits = true}'),
    ('delay = "int"', 'delay = {type = "int", text = true, whole = true, on_error = "null"}'),
    ('measures = ["count"]', 'measures = ["count", "sum(delay)", "max(delay)"]'),
)  # fmt: skip


@pytest.mark.slow
async def test_verify_finds_a_worker_equal_that_takes_values_as_they_come(
    broker: str, tmp_path: Path
) -> None:
    """Texts, whole floats and digits, times of every form, in packed arrays of events."""
    worker = Process(broker, tmp_path / "worker")
    text = worker.map_file.read_text()
    for old, new in AS_THEY_COME:
        text = text.replace(old, new, 1)
    worker.map_file.write_text(text)
    topic = f"{worker.map_name}.raw"
    chance = random.Random(7)
    records = [
        (number % 2, as_it_comes(chance, 3_600 * (number // 4), "AB"[number % 2]))
        for number in range(400)
    ]
    try:
        await apply(worker)
        worker.start()
        await worker.ready()
        await worker.send(topic, *records)

        await all_read(worker, len(records))
        settings = load_settings(worker.settings, {})
        report = await verify(settings, urls=[f"http://127.0.0.1:{worker.port}"])
        assert report.equal, [str(one) for one in report.differences]
        assert all(layer.http == layer.expected > 0 for layer in report.layers)
        assert report.ledger["nulled.flights.delay"] > 50
        assert report.ledger["unreadable.gzip"] > 0
        assert report.ledger["malformed.wrong_type"] > 0
        assert report.ledger["events.classified"] > 500
        _, ledger = await worker.get("/v1/ledger")
        assert ledger["nulled"] == {"flights.delay": report.ledger["nulled.flights.delay"]}
    finally:
        worker.close()


def as_it_comes(chance: random.Random, second: int, origin: str) -> bytes:
    """Return a record of some events of one hour, whose values have various forms."""
    clock = f"{second % 86_400 // 3_600:02d}:10:00.5"
    events = [
        {
            "at": chance.choice(
                [second, second + 0.29, str(second), f"{second}.5",
                 f"1970-01-{1 + second // 86_400:02d}T{clock}"]
            ),
            "type": "flight.departed",
            "origin": origin,
            "carrier": chance.choice(["UA", 42, "42", -7]),
            "delay": chance.choice([1, "2", 3.0, "4.0", None, "x", 1.5, 2**70, [5]]),
        }
        for _ in range(chance.choice([1, 3, 5]))
    ]  # fmt: skip
    if chance.random() < 0.1:
        events[0]["origin"] = 5
    value = json.dumps(events, indent=chance.choice([None, 1])).encode()
    packed = gzip.compress(value)
    return chance.choice([value, *[packed] * 8, packed[:-9]])


SHOP = """
revision = 1
name = "{name}"
[sources.orders]
topic = "{name}.raw"
partitions = 2
format = {{name = "protobuf", descriptor = "shop.desc", message = "{message}", framed = true}}
time = {{path = "meta.at"}}
type = "kind"
id = "uid"
[sources.orders.fields]
label = {{path = 'labels."a.b"', type = "string"}}
delay = "int"
size = {{path = "sizes[0]", type = "float"}}
price = "float"
big = {{type = "int", on_error = "null"}}
[layers.by_label]
source = "orders"
events = ["*"]
key = ["label"]
window = "1h"
allowed_lateness = "1h"
measures = ["count", "sum(delay)", "mean(size)", "max(price)", "min(big)"]
partitions = 2
"""


@pytest.mark.slow
async def test_verify_finds_a_worker_equal_that_reads_protobuf(broker: str, tmp_path: Path) -> None:
    """Framed messages in order of time, late and sent twice; values and bytes that are broken."""
    worker = Process(broker, tmp_path / "worker")
    worker.map_file.write_text(SHOP.format(name=worker.map_name, message=MESSAGE))
    worker.map_file.with_name("shop.desc").write_bytes(descriptor_set().SerializeToString())
    chance = random.Random(11)
    records = [(chance.randrange(2), order(chance, number)) for number in range(1_000)]
    try:
        await apply(worker)
        worker.start()
        await worker.ready()
        await worker.send(f"{worker.map_name}.raw", *records)
        await all_read(worker, len(records))
        settings = load_settings(worker.settings, {})
        report = await verify(settings, urls=[f"http://127.0.0.1:{worker.port}"])
        assert report.equal, [str(one) for one in report.differences]
        assert all(layer.http == layer.expected > 0 for layer in report.layers)
        expected = (
            "events.classified", "events.duplicate", "unreadable.protobuf", "malformed.wrong_type",
            "malformed.out_of_range", "malformed.not_finite", "nulled.orders.big",
            "layer.by_label.partial.too_late",
        )  # fmt: skip
        assert {name: report.ledger[name] for name in expected if report.ledger[name] < 5} == {}
    finally:
        worker.close()


def order(chance: random.Random, number: int) -> bytes:
    """Return a framed order, of a minute after that of the one before if it has a usual time."""
    one = message_of(chance)
    if one.meta.at.seconds == 1_700_000_000:
        one.meta.at.seconds += 60 * number
    one.uid = str(number // 3)
    frame = b"\0\0\0\0\7" + (b"\4\2\2" if chance.random() < 0.95 else b"\0")
    value = frame + one.SerializeToString()
    return broken(chance, value) if chance.random() < 0.1 else value


async def all_read(worker: Process, records: int) -> None:
    """Wait until a worker has read so many records, and sent the closed windows."""

    async def done() -> bool:
        _, ledger = await worker.get("/v1/ledger")
        _, layers = await worker.get("/v1/layers")
        waiting = sum(row["unacknowledged_windows"] for row in layers["layers"])
        rows = ledger["records"][f"{worker.map_name}.raw"].values()
        return sum(row["read"] for row in rows) == records and not waiting

    await until(done, 60)


async def quiet(worker: Process, events: int) -> None:
    """Wait until a worker has folded so many events, and sent the closed windows."""

    async def done() -> bool:
        _, ledger = await worker.get("/v1/ledger")
        _, layers = await worker.get("/v1/layers")
        waiting = sum(row["unacknowledged_windows"] for row in layers["layers"])
        return ledger["layers"]["hour"]["folded"] == events and not waiting

    await until(done, 60)
