"""Verify's recomputation: known logs give known rows, and whatever is changed is found."""

from __future__ import annotations

import copy
import datetime as dt
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from house import House, fill
from support import DAY_MS, HOUR_MS, MemoryLog, dataclasses_replace, flight, small_map

from app.settings import Settings
from app.verify.archive import Archived, open_archive
from app.verify.arrow import ArrowRows
from app.verify.cells import FieldSums, equals, measure_of
from app.verify.compare import Found, compare_answers, compare_archive, compare_ledgers
from app.verify.letters import Letters
from app.verify.partition import Partition, Place
from app.verify.records import Record, RecordReader
from app.verify.rows import Rows, rows_of
from app.verify.topics import VerifyError
from app.verify.windows import window_end, window_start
from client.query import Cell as Answered
from tables.archive_embedded import EmbeddedArchive
from tables.layer import Layer, Map
from tables.window import TIME_MS_MAX, TIME_MS_MIN, Window

MAP = small_map()
HOUR, DAY = MAP.layers
RAW = "flights.raw"
NOW_MS = 4_000_000_000_000


def recompute(log: MemoryLog, themap: Map = MAP) -> list[Partition]:
    """Return the partitions of the one source, all of whose records have been taken."""
    (source,) = themap.sources
    letters = Letters()
    for (topic, _), entries in log.records.items():
        if topic in (themap.side_topic("dead"), themap.side_topic("late")):
            for entry in entries:
                headers = tuple(entry.headers)
                letters.take(Record(entry.offset, entry.append_time_ms, entry.value, headers))
    layers = themap.base_layers(source.name)
    reader = RecordReader(source, ArrowRows(source))
    partitions = [
        Partition(source, layers, number, letters.of(source.topic, number), reader)
        for number in range(source.partitions)
    ]
    for one in partitions:
        one.start(0)
        for entry in log.records.get((source.topic, one.number), []):
            one.take(Record(entry.offset, entry.append_time_ms, entry.value, tuple(entry.headers)))
    return partitions


def rows_in(log: MemoryLog, themap: Map = MAP) -> dict[str, Rows]:
    """Return the rows of every layer."""
    return rows_of(themap, {themap.sources[0].name: recompute(log, themap)}, early=False)


def shown(layer: Layer, rows: Rows) -> dict[Place, list[Any]]:
    """Return the measures of rows, exact."""
    return {
        place: [measure_of(row.whole(layer), measure)[0] for measure in layer.measures]
        for place, row in rows.items()
    }


def answered(layer: Layer, rows: Rows) -> dict[Place, Answered]:
    """Return what a worker would answer."""
    answers = {}
    for (key, start), row in rows.items():
        values = [measure_of(row.whole(layer), measure)[0] for measure in layer.measures]
        measures = {
            measure.name: float(value) if isinstance(value, Fraction) else value
            for measure, value in zip(layer.measures, values, strict=True)
        }
        names = [field.name for field in layer.key]
        cell = Answered(
            dict(zip(names, key, strict=True)), start, window_end(layer, start), measures, 1
        )
        answers[key, start] = cell
    return answers


def served(partitions: list[Partition]) -> dict[str, Any]:
    """Return the ledger that one worker would serve, without contributions."""

    def counted(one: Partition, prefix: str) -> dict[str, int]:
        return {
            name.partition(".")[2]: n for name, n in one.ledger.items() if name.startswith(prefix)
        }

    columns = ("with_events", "heartbeat", "tombstone", "empty", "oversized", "unreadable", "gap")
    total: dict[str, int] = {}
    for one in partitions:
        for name, count in one.ledger.items():
            total[name] = total.get(name, 0) + count
    events = ("decoded", "malformed", "future", "duplicate", "unclassified", "classified")
    folds = ("selected", "folded", "filtered", "too_late")
    return {
        "problems": [],
        "records": {
            RAW: {
                str(one.number): {name: one.ledger[f"records.{name}"] for name in columns}
                for one in partitions
            }
        },
        "events": {name: total.get(f"events.{name}", 0) for name in events},
        "reasons": {
            kind: {n.partition(".")[2]: c for n, c in total.items() if n.startswith(f"{kind}.")}
            for kind in ("unreadable", "malformed")
        },
        "layers": {
            layer.name: {name: total.get(f"layer.{layer.name}.{name}", 0) for name in folds}
            for layer in MAP.layers
        },
    }


def small_log() -> MemoryLog:
    """Return a log of two partitions: in and out of order, late, too late, and broken."""
    log = MemoryLog()
    log.put(RAW, 0, flight(10, delay=3))
    log.put(RAW, 0, flight(20, delay=None))
    log.put(RAW, 0, flight(HOUR_MS + 5, delay=2**62))
    log.put(RAW, 0, flight(30, delay=-4))  # late: the hour is closed, not sealed
    log.put(RAW, 0, b'{"at": 5')
    log.put(RAW, 0, 2 * HOUR_MS)
    log.put(RAW, 0, flight(40, delay=100))  # too late
    log.put(RAW, 1, flight(DAY_MS + 1, origin="LGA", delay=7))
    return log


def test_known_logs_give_known_rows() -> None:
    """Count, sum, mean, min, max and variance of two hours, and the closed part of the day."""
    rows = rows_in(small_log())
    mean = Fraction(-1, 2)
    assert shown(HOUR, rows["hour"]) == {
        (("JFK", "UA"), 0): [3, -1, mean, -4, 3, Fraction(49, 4)],
        (("JFK", "UA"), HOUR_MS): [1, 2**62, 2**62, 2**62, 2**62, 0],
        (("LGA", "UA"), DAY_MS): [1, 7, 7, 7, 7, 0],
    }
    assert rows["hour"][("JFK", "UA"), 0].closed == {0}
    assert rows["hour"][("LGA", "UA"), DAY_MS].closed == set()
    # The open hour of the second day has not been sent to the day.
    assert shown(DAY, rows["day"]) == {
        (("UA",), 0): [4, 2**62 - 1, Fraction(2**62 - 1, 3), -4, 2**62, rows_variance()]
    }


def rows_variance() -> Fraction:
    """Return the variance of the three delays of the first day."""
    delays = [3, 2**62, -4]
    mean = Fraction(sum(delays), 3)
    return sum((delay - mean) ** 2 for delay in delays) / 3


def test_each_offset_and_event_is_counted_in_one_column() -> None:
    """By partition; a record that is not there is a gap."""
    log = small_log()
    del log.records[RAW, 0][1]
    one, _ = recompute(log)
    assert {name: count for name, count in one.ledger.items() if count} == {
        "records.with_events": 5, "records.heartbeat": 1, "records.gap": 1,
        "events.decoded": 5, "events.malformed": 1, "malformed.json": 1, "events.classified": 4,
        "layer.hour.selected": 4, "layer.hour.folded": 3, "layer.hour.too_late": 1,
    }  # fmt: skip


def test_what_is_set_aside_without_a_letter_is_found() -> None:
    """The broken event and the one that is too late; nobody wrote letters here."""
    one, other = recompute(small_log())
    assert [(d.what, d.where, d.got) for d in one.differences] == [
        ("letters", "dead letter of flights.raw[0] offset 4 event 0", ""),
        ("letters", "late letters of flights.raw[0] offset 6", "[]"),
    ]
    assert other.differences == []


async def settled_house(tmp_path: Path, log: MemoryLog, themap: Map = MAP) -> House:
    """Return a worker that has done everything in ``log``, and holds its archive open."""
    archive = EmbeddedArchive(tmp_path / "archive", clock_ms=lambda: NOW_MS)
    await archive.open(themap)
    house = House(log, archive, tmp_path / "state", themap)
    await house.settle()
    return house


def read_archive(tmp_path: Path, themap: Map = MAP) -> dict[str, Archived]:
    """Return the archived rows of every layer, beside the worker that has the folder."""
    settings = Settings(archive_folder=tmp_path / "archive")
    with open_archive(settings) as archive:
        return {layer.name: archive.read(themap, layer) for layer in themap.layers}


@pytest.mark.parametrize("seed", range(2))
async def test_a_worker_s_archive_equals_the_recomputation(tmp_path: Path, seed: int) -> None:
    """Of events in any order, some too late, with sums beyond 64 bits, after kills."""
    log = MemoryLog()
    fill(log, seed, count=300, keyed=seed == 0)
    house = await settled_house(tmp_path, log)
    try:
        archived, found = read_archive(tmp_path), Found(10)
        rows = rows_in(log)
        for layer in MAP.layers:
            assert (
                compare_archive(
                    layer, rows[layer.name], archived[layer.name], found, NOW_MS, early=False
                )
                == 0
            )
            assert len(archived[layer.name]) > 4
        assert found.kept == []
        for number, one in enumerate(recompute(log)):
            owner = house.owners.get(RAW, number)
            assert owner is not None
            ledger = {name: count for name, count in owner.state.meta.ledger.items() if count}
            assert {name: count for name, count in one.ledger.items() if count} == ledger
            assert one.differences == []
    finally:
        await house.kill()
        await house.archive.close()


async def test_an_archive_of_another_map_is_not_compared(tmp_path: Path) -> None:
    """Its layers may have the same names; it says whose it is."""
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(MAP)
    await archive.close()
    with pytest.raises(VerifyError, match="it is of another map; want that of other"):
        read_archive(tmp_path, dataclasses_replace(MAP, name="other"))


async def test_a_changed_archive_row_is_found(tmp_path: Path) -> None:
    """Whatever is changed, exactly that row is reported."""
    log = MemoryLog()
    fill(log, 3, count=60)
    house = await settled_house(tmp_path, log)
    sound = read_archive(tmp_path)["hour"]
    await house.kill()
    await house.archive.close()
    rows = rows_in(log)["hour"]
    where = sorted(sound)[5]
    (key, start), partition = where
    changed = [(start, {**sound, where: sound[where] | {c: 12_345}}) for c in _COLUMNS]
    changed.append((start, {one: row for one, row in sound.items() if one != where}))
    far = start + 900 * HOUR_MS
    changed.append((far, {**sound, ((key, far), partition): sound[where]}))
    for window, archived in changed:
        found = Found(10)
        assert compare_archive(HOUR, rows, archived, found, NOW_MS, early=False) == 1
        assert [one.what for one in found.kept] == ["archive"]
        assert str(window) in found.kept[0].where


_COLUMNS = ("events", "n_delay", "sum_delay", "min_delay", "max_delay", "sqlo_delay", "sqhi_delay")


def test_open_rows_may_be_archived_but_not_with_another_value() -> None:
    """A closed one has to be there, unless its time to live has passed."""
    rows = rows_in(small_log())["hour"]
    assert compare_archive(HOUR, rows, {}, Found(1), NOW_MS, early=False) == 2
    forever = dataclasses_replace(HOUR, archive_ttl_ms=1_000)
    assert compare_archive(forever, rows, {}, Found(1), NOW_MS, early=False) == 0
    place = (("LGA", "UA"), DAY_MS)
    stored = {"events": 1, "n_delay": 1, "sum_delay": 7, "min_delay": 7, "max_delay": 7}
    stored |= {"sqlo_delay": 49, "sqhi_delay": 0}
    assert compare_archive(HOUR, rows, {(place, 1): stored}, Found(1), NOW_MS, early=False) == 2
    assert (
        compare_archive(
            HOUR, rows, {(place, 1): stored | {"events": 2}}, Found(1), NOW_MS, early=False
        )
        == 3
    )
    assert compare_archive(HOUR, rows, {(place, 0): stored}, Found(1), NOW_MS, early=False) == 3


def test_open_rows_that_are_sent_early_have_to_be_archived() -> None:
    """In their own layer and, with what they hold of it, in a coarser one."""
    log = small_log()
    late = rows_in(log)
    rows = rows_of(MAP, {MAP.sources[0].name: recompute(log)}, early=True)
    assert rows["hour"] == late["hour"]
    assert compare_archive(HOUR, rows["hour"], {}, Found(1), NOW_MS, early=False) == 2
    assert compare_archive(HOUR, rows["hour"], {}, Found(1), NOW_MS, early=True) == 3
    day = (("UA",), DAY_MS)
    assert day not in late["day"]
    assert shown(DAY, rows["day"])[day][0] == 1


@pytest.mark.parametrize("change", ["none", "missing", "surplus", "value", "end", "float", "name"])
def test_a_changed_answer_is_found(change: str) -> None:
    """A row more, a row less, another value, another end, and an integer that became a float."""
    rows = rows_in(small_log())["hour"]
    answers = answered(HOUR, rows)
    place = (("JFK", "UA"), 0)
    got = answers[place]
    if change == "missing":
        del answers[place]
    elif change == "surplus":
        answers[("JFK", "UA"), 7 * HOUR_MS] = got
    elif change == "end":
        answers[place] = dataclasses_replace(got, window_end=HOUR_MS - 1)
    elif change != "none":
        changed = {"value": ("sum_delay", 0), "float": ("count", 3.0), "name": ("more", 1)}[change]
        answers[place] = dataclasses_replace(got, measures=got.measures | {changed[0]: changed[1]})
    found = Found(10)
    report = compare_answers(HOUR, rows, {"http://one": answers}, found, NOW_MS)
    assert report.differing == len(found.kept) == (change != "none")
    assert (report.expected, report.http) == (3, len(answers))


def test_a_closed_row_is_asked_of_every_worker_and_an_open_one_of_its_owner() -> None:
    """Another worker may have an older version of what is open, or none."""
    rows = rows_in(small_log())["hour"]
    owner = answered(HOUR, rows)
    other = dict(owner)
    place = (("LGA", "UA"), DAY_MS)
    stale = dataclasses_replace(owner[place], version=0, measures={"count": 9})
    other[place] = stale
    answers = {"http://one": other, "http://two": owner}
    assert compare_answers(HOUR, rows, answers, Found(9), NOW_MS).differing == 0
    del other[place]
    assert compare_answers(HOUR, rows, answers, Found(9), NOW_MS).differing == 0
    del other[("JFK", "UA"), 0]
    assert compare_answers(HOUR, rows, answers, Found(9), NOW_MS).differing == 1


@pytest.mark.parametrize(
    "place",
    [
        (),
        ("records", RAW, "0", "with_events"),
        ("records", RAW, "1", "gap"),
        ("events", "decoded"),
        ("events", "classified"),
        ("events", "duplicate"),
        ("reasons", "malformed", "json"),
        ("reasons", "unreadable", "arrow"),
        ("layers", "hour", "too_late"),
        ("layers", "hour", "folded"),
    ],
)
def test_a_changed_number_of_the_ledger_is_found(place: tuple[str, ...]) -> None:
    """One more in any column is one difference, and nothing changed is none."""
    partitions = recompute(small_log())
    ledger = served(partitions)
    if place:
        inner = ledger
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = inner.get(place[-1], 0) + 1
    found = Found(10)
    compare_ledgers(MAP, {"flights": partitions}, {"http://one": ledger}, found)
    assert len(found.kept) == (1 if place else 0), found.kept


def test_a_worker_answers_only_for_the_partitions_it_owns() -> None:
    """Two workers with a partition each."""
    partitions = recompute(small_log())
    ledgers = {f"http://{one.number}": served([one]) for one in partitions}
    found = Found(10)
    compare_ledgers(MAP, {"flights": partitions}, ledgers, found)
    assert found.kept == []


def with_ids(**changes: Any) -> Map:
    """Return the small map with ids."""
    source = dataclasses_replace(MAP.sources[0], id_field="id", ids_max=1_000)
    return dataclasses_replace(MAP, sources=(dataclasses_replace(source, **changes),))


async def test_duplicates_are_those_of_a_worker(tmp_path: Path) -> None:
    """Ids that repeat at random, some after their windows are sealed, some without end."""
    chance = random.Random(5)
    themap = with_ids(ids_max=20)
    log = MemoryLog()
    for number in range(400):
        event = flight(number * 5 * HOUR_MS // 100 - chance.randrange(HOUR_MS))[:-1]
        name = chance.choice([b"", b', "id": null', b', "id": "%d"', b', "id": %d'])
        filled = name % chance.randrange(number // 4, number // 4 + 30) if b"%d" in name else name
        log.put(RAW, number % 2, event + filled + b"}")
    for partition in range(2):
        log.put(RAW, partition, 10 * DAY_MS)
    house = await settled_house(tmp_path, log, themap)
    counts = []
    for number, one in enumerate(recompute(log, themap)):
        owner = house.owners.get(RAW, number)
        assert owner is not None
        ledger = {name: count for name, count in owner.state.meta.ledger.items() if count}
        assert {name: count for name, count in one.ledger.items() if count} == ledger
        counts.append(one.ledger["events.duplicate"])
    assert min(counts) > 10
    await house.kill()
    await house.archive.close()


@pytest.mark.parametrize("text", ["1ms", "7m", "1h", "7d", "month", "year"])
def test_windows_are_those_of_the_calendar(text: str) -> None:
    """Over all years that events have, their first and last moments too."""
    chance = random.Random(text)
    layer = dataclasses_replace(HOUR, window=Window.parse(text))
    times = [TIME_MS_MIN, TIME_MS_MAX, -1, 0, 951_782_400_000]
    times += [chance.randrange(TIME_MS_MIN, TIME_MS_MAX) for _ in range(2_000)]
    for time_ms in times:
        start = window_start(layer, time_ms)
        assert start <= time_ms < window_end(layer, start)
        assert (start, window_end(layer, start)) == (
            layer.window.start(time_ms), layer.window.end(layer.window.start(time_ms)),
        )  # fmt: skip
        if layer.window.is_calendar:
            date = dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=time_ms)  # noqa: DTZ001
            first = date.replace(day=1, month=date.month if text == "month" else 1)
            day = first.date().toordinal() - dt.date(1970, 1, 1).toordinal()
            assert start == day * DAY_MS


def test_sums_of_floats_may_be_off_by_their_order_and_no_more() -> None:
    """Numbers of all sizes, added in many orders; one of them left out is far off."""
    chance = random.Random(1)
    values = [chance.choice([1e16, 1.0, -1e16, 1e-3]) * chance.random() for _ in range(300)]
    sums = FieldSums(is_float=True)
    for value in values:
        sums.add(value)
    assert sums.sum == sum(map(Fraction, values))
    assert sums.slack > 0
    for _ in range(200):
        chance.shuffle(values)
        total = 0.0
        for value in values:
            total += value
        assert equals(total, sums.sum, sums.slack)
    large = max(values)
    assert not equals(total - large, sums.sum, sums.slack)
    mean = float(sums.sum) / sums.n
    deviations = sum((value - mean) ** 2 for value in values)
    assert equals(deviations, sums.deviations, sums.deviations_slack)
    assert not equals(deviations * 1.001, sums.deviations, sums.deviations_slack)


@pytest.mark.parametrize(
    ("got", "want", "same"),
    [
        (3, 3, True), (3.0, 3, False), (True, 1, False), (None, 1, False), (1, None, False),
        (None, None, True), (0.1, Fraction(1, 10), True),
        (0.10000000000000002, Fraction(1, 10), False), (1, Fraction(1), False),
        (2**63, 2**63, True), (float("inf"), Fraction(10**400), True),
    ],
)  # fmt: skip
def test_numbers_are_equal_exactly(got: object, want: Any, same: bool) -> None:
    """Integers as integers; what is rounded once, as the nearest float."""
    assert equals(got, want) is same


def test_letters_of_records_that_are_not_there_are_found() -> None:
    """A letter that is there twice is one; marks of a replay are none; junk is counted."""
    headers = {
        "topic": "t", "partition": "1", "offset": "7", "index": "0,3-5", "reason": "json",
        "events": "4", "detail": "",
    }  # fmt: skip
    letters = Letters()
    for changes in ({}, {}, {"reason": "late", "layer": "hour"}, {"offset": "9", "index": ""}):
        record = tuple((n, v.encode()) for n, v in copy.copy(headers | changes).items())
        letters.take(Record(0, 0, b"", record))
    letters.take(Record(0, 0, b"", (("treasure-map-replay", b""),)))
    letters.take(Record(0, 0, b"", (("topic", b"t"),)))
    assert letters.of("t", 1).dead == {
        7: dict.fromkeys((0, 3, 4, 5), frozenset({"json"})),
        9: {None: frozenset({"json"})},
    }
    assert letters.of("t", 1).late == {7: frozenset(("hour", place) for place in (0, 3, 4, 5))}
    assert sorted(letters.left("t", 1, 9)) == [7]
    assert letters.unreadable == 1
