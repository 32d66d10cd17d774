"""The truth of a load equals the result of the worker's own steps, for any form and mix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agents.decode import formats
from agents.decode.records import Decoder
from agents.fold.content import Before
from agents.fold.layers import Folder
from app.load import writers
from app.load.bad_input import KINDS
from app.load.events import EventMaker
from app.load.plan import MAP_FILE, SOURCE, LoadSpec, Part, schedule
from app.load.records import Pack, RecordMaker
from app.load.vocabulary import words_of
from app.load.writers import writers_of
from app.mapfile.load import load_map, parse_map
from tables.model.layer import Map
from tables.model.ledger import Ledger, add, imbalances
from tables.model.window import NEVER_MS
from tables.record.chunk import Headers, Run
from tables.record.heartbeat import HEARTBEAT_HEADER, encode_heartbeat
from tables.state.block import encode_block
from tables.state.id_table import IDS, IdTable
from tables.state.input_plan import plans_of
from tests.support.common import kinds
from tests.support.tsv_format import MAGIC, TSV, WRITER

START_MS = 1_700_000_000_000
NOW_MS = START_MS + 3_600_000

HARD_MAP = """
revision = 1
name = "hard"

[sources.raw]
topic = "raw"
partitions = 3
time = "when"
time_unit = "s"
type = "kind"
id = "uid"
record_bytes_max = 4096
unclassified = "count"

[sources.raw.fields]
kind = "string"
user = "int"
vip = "bool"
score = "float"
clicks = "int"

[layers.by_user]
source = "raw"
events = ["a.*", "b"]
key = ["user"]
window = "10s"
max_out_of_orderness = "1s"
allowed_lateness = "20s"
measures = ["count", "sum(clicks)"]
where = [{ field = "clicks", op = ">", value = 100 }, { field = "vip", op = "==", value = true }]

[layers.by_kind]
source = "raw"
events = ["**"]
key = ["kind", "vip"]
window = "month"
allowed_lateness = "1h"
measures = ["count", "mean(score)"]
where = [{ field = "kind", op = "in", value = ["a.t0", "b"] }]
"""


def plan_of(form: str, **changes: Any) -> LoadSpec:
    """Return a plan of 6,000 events over six seconds of event time."""
    fields: dict[str, Any] = {
        "map_file": str(MAP_FILE), "source": SOURCE, "brokers": "", "rate": 2_000.0,
        "seconds": 3.0, "keys": 50, "skew": 1.0, "types": 7, "late": 0.1, "bad": 0.1,
        "format": form, "batch": 40, "seed": 3, "start_ms": START_MS, "speed": 60.0,
    }  # fmt: skip
    return LoadSpec(**fields | changes)


def written(themap: Map, plan: LoadSpec) -> tuple[RecordMaker, dict[int, list[Pack]]]:
    """Return a part of all partitions, written, and its records with heartbeats as packs."""
    source = themap.source(plan.source)
    words = words_of(themap, source, keys=plan.keys, skew=plan.skew, types=plan.types)
    part = Part(0, tuple(range(source.partitions)), 0.0, 1.0)
    events, records = EventMaker(words, plan, part), RecordMaker(words, plan, part)
    packs: dict[int, list[Pack]] = {number: [] for number in part.partitions}
    for step in schedule(plan.events, plan.seconds, 0.25):
        for pack in records.make(events.make(step), NOW_MS):
            packs[pack.partition].append(pack)
        if step.heartbeat:
            time_ms = plan.time_ms(step.end_s)
            records.truth.note_heartbeat(time_ms)
            headers: dict[int, Headers] = {0: ((HEARTBEAT_HEADER, encode_heartbeat(time_ms)),)}
            for number, own in packs.items():
                own.append(Pack(number, [None], [None], headers))
    return records, packs


def runs_of(topic: str, packs: list[Pack], records_max: int) -> Iterator[Run]:
    """Yield one partition's records as runs of at most so many."""
    values = [value for pack in packs for value in pack.values]
    headers: dict[int, Headers] = {}
    first = 0
    for pack in packs:
        headers |= {first + index: own for index, own in pack.headers.items()}
        first += len(pack.values)
    for start in range(0, len(values), records_max):
        stop = min(start + records_max, len(values))
        yield Run(
            topic=topic,
            partition=packs[0].partition,
            first_offset=start,
            next_offset=stop,
            offsets=range(start, stop),
            values=values[start:stop],
            append_times_ms=[NOW_MS] * (stop - start),
            headers={i - start: own for i, own in headers.items() if start <= i < stop},
        )


def worked(themap: Map, source: str, packs: list[Pack], records_max: int) -> tuple[Ledger, int]:
    """Return the ledger and the stream time that the worker's steps come to."""
    topic = themap.source(source).topic
    decoder, folder = Decoder(themap.source(source)), Folder(plans_of(themap)[topic])
    ledger: Ledger = {}
    time_ms, floors, ids = NEVER_MS, dict[str, int](), IdTable(10**6)
    layers = plans_of(themap)[topic].layers
    for run in runs_of(topic, packs, records_max):
        batch = decoder.decode([run])
        [content] = folder.fold(batch, {run.partition: Before(time_ms, floors, ids)})
        add(ledger, content.ledger)
        if IDS in content.blocks:
            ids.add(encode_block(content.blocks[IDS]), run.next_offset)
        time_ms = content.stream_time_ms
        for layer in layers:
            slack_ms = layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
            floors[layer.name] = max(floors.get(layer.name, NEVER_MS), time_ms - slack_ms)
    return ledger, time_ms


def known(ledger: Ledger) -> Ledger:
    """Return the counts that are not zero."""
    return {name: count for name, count in ledger.items() if count}


@pytest.mark.slow
@pytest.mark.parametrize("form", kinds("mixed", "json", "ndjson", "arrow", "csv", "avro"))
@pytest.mark.parametrize("records_max", [29, 100_000])
def test_the_workers_steps_come_to_the_truth(form: str, records_max: int) -> None:
    """A tenth of it bad, a tenth late, of the example's map; in small runs and in one."""
    themap = load_map(MAP_FILE)
    records, packs = written(themap, plan_of(form))
    for number, own in packs.items():
        ledger, time_ms = worked(themap, SOURCE, own, records_max)
        truth = records.truth.partitions[number]
        assert known(ledger) == known(truth.ledger)
        assert time_ms == truth.stream_time_ms
        names = [layer.name for layer in themap.base_layers(SOURCE)]
        assert imbalances(truth.ledger, truth.records, names) == []
    assert sum(truth.late.get("orders_minute", 0) for truth in records.truth.partitions.values())


@pytest.mark.slow
@pytest.mark.parametrize("form", kinds("mixed", "json", "ndjson", "arrow", "csv", "avro"))
def test_a_map_of_seconds_numbers_months_and_no_key_comes_to_the_truth(form: str) -> None:
    """Partitions at random, layers that are merged, filters over nulls and over the type."""
    themap = parse_map(HARD_MAP, "hard")
    plan = plan_of(form, source="raw", types=4, start_ms=START_MS // 1_000 * 1_000)
    records, packs = written(themap, plan)
    for number, own in packs.items():
        ledger, time_ms = worked(themap, "raw", own, 50)
        truth = records.truth.partitions[number]
        assert known(ledger) == known(truth.ledger)
        assert time_ms == truth.stream_time_ms
        assert truth.ledger["layer.by_user.partial.filtered"]


@pytest.mark.slow
@pytest.mark.parametrize("form", kinds("mixed", "json"))
@pytest.mark.parametrize("window", ["month", "2s"])
def test_repeats_among_late_and_bad_events_come_to_the_truth(form: str, window: str) -> None:
    """Some come when all their short windows are sealed, and are too late."""
    text = HARD_MAP.replace('"month"', f'"{window}"').replace('lateness = "1h"', 'lateness = "1s"')
    themap = parse_map(text.replace('lateness = "20s"', 'lateness = "0s"'), "hard")
    start_ms = START_MS // 1_000 * 1_000
    plan = plan_of(form, source="raw", types=4, start_ms=start_ms, duplicates=0.2)
    records, packs = written(themap, plan)
    for number, own in packs.items():
        ledger, time_ms = worked(themap, "raw", own, 50)
        truth = records.truth.partitions[number]
        assert known(ledger) == known(truth.ledger)
        assert time_ms == truth.stream_time_ms
        assert truth.ledger["events.duplicate"] > 200


@pytest.mark.parametrize("form", ["tsv", "mixed"])
def test_an_added_format_comes_to_the_truth(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format with a writer is an entry in two lists: no other step of a load knows it."""
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, TSV))
    monkeypatch.setattr(writers, "WRITERS", (*writers.WRITERS, WRITER))
    themap = load_map(MAP_FILE)
    records, packs = written(themap, plan_of(form))
    values = [value for own in packs.values() for pack in own for value in pack.values]
    assert sum((value or b"").startswith(MAGIC) for value in values) > 20
    for number, own in packs.items():
        ledger, time_ms = worked(themap, SOURCE, own, 70)
        truth = records.truth.partitions[number]
        assert known(ledger) == known(truth.ledger)
        assert time_ms == truth.stream_time_ms


@pytest.mark.parametrize("form", kinds("mixed", "json", "ndjson", "arrow", "csv", "avro"))
def test_every_kind_that_a_form_has_is_written(form: str) -> None:
    """Kinds come in rounds, so that a few dozen bad events have them all."""
    records, _ = written(load_map(MAP_FILE), plan_of(form))
    wanted = {kind.name for kind in KINDS if any(map(kind.suits, writers_of(form)))}
    assert set(records.bad) == wanted


def test_the_same_seed_writes_the_same_and_another_does_not() -> None:
    """Records, keys and headers, and the truth about them."""
    themap = load_map(MAP_FILE)
    first, packs = written(themap, plan_of("mixed"))
    again, same = written(themap, plan_of("mixed"))
    _, other = written(themap, plan_of("mixed", seed=4))
    assert packs == same
    assert first.truth.partitions == again.truth.partitions
    assert packs != other
