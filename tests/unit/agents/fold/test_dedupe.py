"""Duplicates: the same ones are dropped for every chunking, form and restart."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.decode.records import Decoder
from agents.fold.content import Before
from agents.fold.layers import Folder
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model import ledger
from tables.model.errors import FencedError, OutcomeUnknownError
from tables.model.layer import Map
from tables.model.window import NEVER_MS, Window
from tables.state.block import encode_block
from tables.state.id_table import IDS, IdTable
from tables.state.input_plan import plans_of
from tests.support.common import (
    DAY_MS,
    HOUR_MS,
    MemoryLog,
    dataclasses_replace,
    flight,
    run_of,
    small_map,
)
from tests.support.local_worker import RAW, LocalWorker, archived, fill

MINUTE_MS = 60_000
Event = dict[str, Any]


def map_with_ids(ids_max: int = 2_000_000) -> Map:
    """Return the small map, its events with ids, and a second base layer that filters."""
    themap = small_map()
    source = dataclasses_replace(themap.sources[0], id_field="id", ids_max=ids_max)
    hour, day = themap.layers
    ten = dataclasses_replace(
        hour,
        name="ten",
        window=Window(10 * MINUTE_MS),
        events=("flight.departed",),
        max_out_of_orderness_ms=5 * MINUTE_MS,
        allowed_lateness_ms=0,
    )
    return dataclasses_replace(themap, sources=(source,), layers=(hour, ten, day))


LAYERS = (("hour", HOUR_MS, HOUR_MS), ("ten", 10 * MINUTE_MS, 5 * MINUTE_MS))
"""Name, window and slack of both base layers of that map."""


def plainly(log: list[list[Event] | int], ids_max: int) -> Counter[str]:
    """Return the counts of one partition, event by event; a number in ``log`` is a heartbeat."""
    counts: Counter[str] = Counter()
    time_ms, remembered = NEVER_MS, 0
    newest: dict[str, tuple[int, int]] = {}
    for record in log:
        for event in [{"at": record}] if isinstance(record, int) else record:
            now, at = time_ms, event["at"]
            time_ms = max(time_ms, at)
            if "type" not in event:
                continue
            if event["type"] == "other":
                counts["events.unclassified"] += 1
                continue
            untils = [at - at % window + window + slack for _, window, slack in LAYERS]
            name = str(event.get("id") or "") if event.get("id") != 0 else "0"
            until, number = newest.get(name, (now, 0))
            if name and now < until and remembered - number <= ids_max:
                counts["events.duplicate"] += 1
                continue
            counts["events.classified"] += 1
            if name and now < max(untils):
                newest[name] = (max(untils), remembered)
                remembered += 1
            for (layer, *_), sealed in zip(LAYERS, untils, strict=True):
                if layer == "hour" or event["type"] == "flight.departed":
                    late = "too_late" if sealed <= now else "folded"
                    counts[f"layer.{layer}.{late}"] += 1
    return counts


def encoded(record: list[Event] | int, form: str) -> bytes | int:
    """Return a record's value; a heartbeat's is its time."""
    if isinstance(record, int):
        return record
    if form == "json":
        return b"\n".join(map(orjson.dumps, record))
    ids = [event.get("id") for event in record]
    kind = pl.Int64 if all(isinstance(one, int) for one in ids) else pl.String
    texts = ids if kind == pl.Int64 else [None if one is None else str(one) for one in ids]
    frame = pl.DataFrame([{k: v for k, v in event.items() if k != "id"} for event in record])
    file = io.BytesIO()
    frame.with_columns(id=pl.Series(texts, dtype=kind)).write_ipc_stream(file)
    return file.getvalue()


def worked(
    themap: Map, log: list[list[Event] | int], forms: list[str], cuts: list[int], seed: int
) -> Counter[str]:
    """Return the counts that the steps come to in these chunks, with tables that are reloaded."""
    plan = plans_of(themap)["flights.raw"]
    assert plan.source is not None
    decoder, folder, chance = Decoder(plan.source), Folder(plan), random.Random(seed)
    counts: Counter[str] = Counter()
    ids = IdTable(plan.source.ids_max)
    before = Before(NEVER_MS, {}, ids)
    values = [encoded(*pair) for pair in zip(log, forms, strict=True)]
    for start, stop in itertools.pairwise([0, *sorted(set(cuts)), len(values)]):
        (content,) = folder.fold(
            decoder.decode([run_of(values[start:stop], first_offset=start)]), {0: before}
        )
        assert ledger.imbalances(content.ledger, stop - start, [name for name, *_ in LAYERS]) == []
        counts.update(content.ledger)
        if forgettable := ids.forgettable(content.stream_time_ms):
            ids.forget_oldest(forgettable)
        if IDS in content.blocks:
            ids.add(encode_block(content.blocks[IDS]), stop)
        if chance.random() < 0.3:
            ids = reloaded(ids)
        before = Before(content.stream_time_ms, {}, ids)
    return counts


def reloaded(ids: IdTable) -> IdTable:
    """Return the table that a store or a snapshot gives back."""
    again = IdTable(ids.ids_max)
    for write in reversed(ids.all_writes()):
        assert write.data is not None
        again.load(write.sequence, write.version, write.data)
    return again


EVENTS = st.fixed_dictionaries(
    {
        "at": st.integers(0, 6 * HOUR_MS),
        "type": st.sampled_from(["flight.departed", "flight.arrived", "other"]),
        "origin": st.just("JFK"),
        "carrier": st.sampled_from(["UA", "AA"]),
    },
    optional={"id": st.one_of(st.none(), st.just(""), st.integers(0, 9), st.sampled_from("abc12"))},
)
LOGS = st.lists(
    st.one_of(st.lists(EVENTS, min_size=1, max_size=6), st.integers(0, 6 * HOUR_MS)), max_size=30
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(LOGS, st.sampled_from([1, 2, 5, 2_000_000]), st.data())
def test_every_chunking_and_form_drops_what_is_plainly_a_duplicate(
    log: list[list[Event] | int], ids_max: int, data: st.DataObject
) -> None:
    """Ids are few and times far apart, so that ids are repeated, forgotten and remembered again."""
    forms = data.draw(st.lists(st.sampled_from(["json", "arrow"]), min_size=len(log)))[: len(log)]
    cuts = data.draw(st.lists(st.integers(1, max(1, len(log) - 1)), max_size=8)) if log else []
    cuts = [cut for cut in cuts if cut < len(log)]
    themap = map_with_ids(ids_max)
    counts = worked(themap, log, forms, cuts, data.draw(st.integers(0, 99))) if log else Counter()
    wanted = plainly(log, ids_max)
    assert {name: counts[name] for name in wanted} == dict(wanted)
    assert counts["events.duplicate"] == wanted["events.duplicate"]


@pytest.mark.slow
def test_a_large_load_with_many_repeats_is_counted_as_plainly() -> None:
    """Thousands of events, so that blocks are joined, the filter is rebuilt and ids are evicted."""
    rng = random.Random(5)
    log: list[list[Event] | int] = []
    for number in range(3_000):
        events = []
        for _ in range(rng.choice([1, 1, 1, 9])):
            name = f"id-{number - int(rng.expovariate(1 / 300)) if rng.random() < 0.3 else number}"
            at = number * 5_000 - rng.randrange(20 * MINUTE_MS)
            event = {"at": max(at, 0), "type": "flight.departed", "origin": "JFK", "carrier": "AA"}
            events.append(event | {"id": name})
        log.append(events)
    for ids_max in (500, 2_000_000):
        wanted = plainly(log, ids_max)
        assert wanted["events.duplicate"] > 500
        for step in (40, 700):
            cuts = [*range(1, 40), *range(40, 3_000, step)]
            counts = worked(map_with_ids(ids_max), log, ["json"] * 3_000, cuts, step)
            assert {name: counts[name] for name in wanted} == dict(wanted)


def test_ids_of_another_type_are_malformed_and_a_number_is_its_digits() -> None:
    """A null or empty id does not count, so such events are all kept."""
    event = orjson.loads(flight(5))
    ids = [True, 1.5, {}, [1], 2**63, None, "", "7", 7, None, ""]
    values = [orjson.dumps(event | {"id": one}) for one in ids]
    plan = plans_of(map_with_ids())["flights.raw"]
    assert plan.source is not None
    (content,) = Folder(plan).fold(
        Decoder(plan.source).decode([run_of(list(values))]), {0: Before(NEVER_MS, {}, IdTable(9))}
    )
    assert content.ledger["malformed.wrong_type"] == 4
    assert content.ledger["malformed.out_of_range"] == 1
    assert content.ledger["events.duplicate"] == 1
    assert content.ledger["events.classified"] == 5
    assert content.blocks[IDS].height == 1


def doubled(log: MemoryLog, seed: int) -> int:
    """Give the events of a filled log ids, and send some again soon; return how many."""
    rng = random.Random(seed)
    again = 0
    for partition in (0, 1):
        first = log.records[RAW, partition]
        records: list[Any] = []
        for number, record in enumerate(first):
            if record.value is not None:
                event = orjson.loads(record.value) | {"id": f"{partition}-{number}"}
                record = dataclasses.replace(record, value=orjson.dumps(event))  # noqa: PLW2901
            records.append(record)
            # It is at most a few hours old: some come when their hour is sealed.
            if rng.random() < 0.3 and records[-3:-1] and records[-2].value is not None:
                records.append(records[-2])
                again += 1
        log.records[RAW, partition] = [
            dataclasses.replace(record, offset=offset) for offset, record in enumerate(records)
        ]
    return again


@pytest.mark.slow
async def test_duplicates_are_dropped_through_kills_with_and_without_a_store(
    tmp_path: Path,
) -> None:
    """The archive has each event once, through kills, lost stores and unknown appends."""
    log = MemoryLog()
    events = fill(log, 3, 400)
    again = doubled(log, 3)
    themap = map_with_ids()
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(themap)
    house = LocalWorker(log, archive, tmp_path / "state", themap)
    rng = random.Random(3)
    for number in range(40):
        await house.restore()
        if rng.random() < 0.2:
            log.fail_next = rng.choice(["lost", "unanswered"])
        with contextlib.suppress(FencedError, OutcomeUnknownError):
            await house.step(RAW, rng.choice([1, 3, 40]))
        if rng.random() < 0.3:
            await house.kill()
            if rng.random() < 0.5:
                house.folder = tmp_path / f"state-{number}"
                house.start()
    await house.settle()
    # The next delta is the earliest that forgets the ids of this one.
    for partition in (0, 1):
        log.put(RAW, partition, 10 * DAY_MS)
    await house.settle()
    hours = await archived(house, "hour")
    assert hours["events"].sum() == len(events)
    owners = [owner for owner in house.owners.each() if owner.plan.source is not None]
    counts = ledger.total(owner.state.meta.ledger for owner in owners)
    assert counts["events.duplicate"] + counts["layer.hour.too_late"] == again
    assert counts["events.duplicate"] > 50
    for owner in owners:
        assert owner.state.ids is not None
        # The last heartbeat sealed every window, so nothing has to be remembered.
        assert owner.state.ids.rows == 0
    await house.kill()
    await archive.close()


async def test_a_duplicate_of_a_sealed_window_is_too_late(tmp_path: Path) -> None:
    """Its id is forgotten; the floor keeps it out."""
    log = MemoryLog()
    event = orjson.dumps(orjson.loads(flight(5)) | {"id": "a"})
    for value in (event, event, 2 * HOUR_MS - 1, event, 2 * HOUR_MS, event, DAY_MS):
        log.put(RAW, 0, value)
    themap = map_with_ids()
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(themap)
    house = LocalWorker(log, archive, tmp_path / "state", themap)
    await house.restore()
    while await house.step(RAW, 1):
        pass
    owner = house.owners.get(RAW, 0)
    assert owner is not None
    counts = owner.state.meta.ledger
    assert counts["events.duplicate"] == 2
    assert counts["layer.hour.too_late"] == 1
    assert counts["layer.hour.folded"] == 1
    await house.kill()
    await archive.close()
