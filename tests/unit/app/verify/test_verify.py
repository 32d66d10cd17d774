"""Verify's recomputation: known logs give known rows, and every change is found."""

from __future__ import annotations

import copy
import datetime as dt
import math
import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from app.config.settings import Settings
from app.verify import check_log
from app.verify.archive import load_archived, open_archive
from app.verify.cells import equals
from app.verify.compare import DifferenceLog, compare_answers, compare_archive, compare_ledgers
from app.verify.database import Database
from app.verify.errors import VerifyError
from app.verify.events import Events, Partition
from app.verify.letters import Letters
from app.verify.records import Record
from app.verify.windows import first_window, window_end, window_start
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.layer import Layer, Map
from tables.model.window import TIME_MS_MAX, TIME_MS_MIN, Window
from tests.support.common import DAY_MS, HOUR_MS, MemoryLog, dataclasses_replace, flight, small_map
from tests.support.local_worker import LocalWorker, fill
from tests.support.plain.cells import PlainSums
from tests.support.plain.partition import Place
from tests.support.verify_support import Archived, Recomputed, measures_of

MAP = small_map()
HOUR, DAY = MAP.layers
RAW = "flights.raw"
NOW_MS = 4_000_000_000_000


@pytest.fixture
def database() -> Iterator[Database]:
    """Run an engine for the test."""
    with Database() as running:
        yield running


def partitions_of(recomputed: Recomputed) -> list[Partition]:
    """Return the partitions of the one source."""
    return recomputed.events["flights"].partitions


def shown(recomputed: Recomputed, layer: Layer) -> dict[Place, list[Any]]:
    """Return the measures of rows, which have one part each, exact."""
    return {
        place: measures_of(layer, cell) for (place, _), (_, cell) in recomputed.rows(layer).items()
    }


def answered(recomputed: Recomputed, layer: Layer) -> dict[Place, dict[str, Any]]:
    """Return the rows that a worker would answer."""
    answers = {}
    for place, values in shown(recomputed, layer).items():
        measures = {
            measure.name: float(value) if isinstance(value, Fraction) else value
            for measure, value in zip(layer.measures, values, strict=True)
        }
        answers[place] = {"window_end": window_end(layer, place[1]), "version": 1, **measures}
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


def test_known_logs_give_known_rows(database: Database) -> None:
    """Count, sum, mean, min, max and variance of two hours, and the closed part of the day."""
    found = Recomputed.of(database, small_log(), MAP)
    mean = Fraction(-1, 2)
    assert shown(found, HOUR) == {
        (("JFK", "UA"), 0): [3, -1, mean, -4, 3, Fraction(49, 4)],
        (("JFK", "UA"), HOUR_MS): [1, 2**62, 2**62, 2**62, 2**62, 0],
        (("LGA", "UA"), DAY_MS): [1, 7, 7, 7, 7, 0],
    }
    closed = {where: is_closed for where, (is_closed, _) in found.rows(HOUR).items()}
    assert closed[(("JFK", "UA"), 0), 0]
    assert not closed[(("LGA", "UA"), DAY_MS), 1]
    # The open hour of the second day has not been sent to the day.
    assert shown(found, DAY) == {
        (("UA",), 0): [4, 2**62 - 1, Fraction(2**62 - 1, 3), -4, 2**62, rows_variance()]
    }


def rows_variance() -> Fraction:
    """Return the variance of the three delays of the first day."""
    delays = [3, 2**62, -4]
    mean = Fraction(sum(delays), 3)
    return sum(((delay - mean) ** 2 for delay in delays), start=Fraction()) / 3


def test_each_offset_and_event_is_counted_in_one_column(database: Database) -> None:
    """Partitions count apart; a record that is not there is a gap."""
    log = small_log()
    del log.records[RAW, 0][1]
    one, _ = Recomputed.of(database, log, MAP).ledgers()
    assert one == {
        "records.with_events": 5, "records.heartbeat": 1, "records.gap": 1,
        "events.decoded": 5, "events.malformed": 1, "malformed.json": 1, "events.classified": 4,
        "layer.hour.selected": 4, "layer.hour.folded": 3, "layer.hour.too_late": 1,
    }  # fmt: skip


def test_a_record_with_a_header_name_that_is_no_text_is_set_aside(database: Database) -> None:
    """Kafka takes such names; the record is counted once, for any value, and has a letter."""
    found = Recomputed.of(database, MemoryLog(), MAP)
    name = b"Gr\xfcn".decode(errors="surrogateescape")
    values = [flight(10), b"", None, b"\xff\xff\xff\xff", flight(20)]
    headers = ((name, b"x"), ("content-type", b"application/json"))
    records = [Record(at, 2 * 10**12, value, headers) for at, value in enumerate(values[:4])]
    records.append(Record(4, 2 * 10**12, values[4], (("gr\u00fcn", b"x"),)))
    found.events["flights"].take(0, records)
    found.settle()
    one, _ = found.ledgers()
    assert one["unreadable.header"] == one["records.unreadable"] == 4
    assert one["events.classified"] == 1
    assert [(d.want, d.got) for d in found.differences()] == [("header", "")] * 4


def test_what_is_set_aside_without_a_letter_is_found(database: Database) -> None:
    """The broken event and the one that is too late; nobody wrote letters here."""
    differences = Recomputed.of(database, small_log(), MAP).differences()
    assert [(d.what, d.where, d.got) for d in differences] == [
        ("letters", "dead letter of flights.raw[0] offset 4 event 0", ""),
        ("letters", "late letters of flights.raw[0] offset 6", "[]"),
    ]


def test_what_comes_later_is_recomputed_with_what_was_there(database: Database) -> None:
    """Tables are made anew each time; the log is read on."""
    log, whole = MemoryLog(), small_log()
    found = Recomputed.of(database, log, MAP)
    assert found.rows(HOUR) == {}
    for part in range(2):
        for entry in whole.records[RAW, part]:
            headers = tuple(entry.headers)
            record = Record(entry.offset, entry.append_time_ms, entry.value, headers)
            found.events["flights"].take(part, [record])
            found.settle()
    with Database() as other:
        at_once = Recomputed.of(other, whole, MAP)
        assert found.ledgers() == at_once.ledgers()
        assert found.rows(HOUR) == at_once.rows(HOUR)
        assert found.rows(DAY) == at_once.rows(DAY)


def test_a_log_that_has_lost_what_a_worker_has_read_is_not_compared() -> None:
    """It has lost its beginning, or records in the middle, as by compaction."""
    one = Partition(0, first=3, position=3)
    one.skip_to(4)
    row = {"position": 5, "read": 2, "gap": 1}
    check_log("t", one, row, "http://one")
    with pytest.raises(VerifyError, match="from offset 0; got a log that begins at 3"):
        check_log("t", one, row | {"read": 5}, "http://one")
    with pytest.raises(VerifyError, match=r"1 more offsets without a record.*without compaction"):
        check_log("t", one, row | {"gap": 0}, "http://one")


def test_what_the_engine_wrote_is_removed() -> None:
    """Its folder goes too; a failed removal is told."""
    with Database() as running:
        running.run("CREATE TABLE t AS SELECT range AS n FROM range(100000)")
        assert list(running.folder.iterdir())
        with pytest.raises(VerifyError, match=r"cannot recompute: .*no_such_table"):
            running.run("FROM no_such_table")
    assert not running.folder.exists()


async def settled_house(tmp_path: Path, log: MemoryLog, themap: Map = MAP) -> LocalWorker:
    """Return a worker that has done everything in ``log``, and holds its archive open."""
    archive = EmbeddedArchive(tmp_path / "archive", clock_ms=lambda: NOW_MS)
    await archive.open(themap)
    house = LocalWorker(log, archive, tmp_path / "state", themap)
    await house.settle()
    return house


def load_archive(tmp_path: Path, found: Recomputed, layer: Layer) -> int:
    """Read a layer's archived rows, beside the worker that has the folder."""
    with open_archive(Settings(archive_folder=tmp_path / "archive")) as archive:
        return load_archived(found.database, layer, archive.frames(found.themap, layer))


@pytest.mark.parametrize("seed", range(2))
async def test_a_worker_s_archive_equals_the_recomputation(
    tmp_path: Path, database: Database, seed: int
) -> None:
    """Events come in any order, some too late, with sums beyond 64 bits, after kills."""
    log = MemoryLog()
    fill(log, seed, count=300, keyed=seed == 0)
    house = await settled_house(tmp_path, log)
    try:
        found, differing = Recomputed.of(database, log, MAP), DifferenceLog(10)
        for layer in MAP.layers:
            assert load_archive(tmp_path, found, layer) > 4
            assert compare_archive(database, layer, differing, NOW_MS, early=False) == 0
        assert differing.kept == []
        for number, counts in enumerate(found.ledgers()):
            owner = house.owners.get(RAW, number)
            assert owner is not None
            ledger = {name: count for name, count in owner.state.meta.ledger.items() if count}
            assert counts == ledger
        assert found.differences() == []
    finally:
        await house.kill()
        await house.archive.close()


async def test_an_archive_of_another_map_is_not_compared(
    tmp_path: Path, database: Database
) -> None:
    """Its layers may have the same names; it says whose it is."""
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(MAP)
    await archive.close()
    with pytest.raises(VerifyError, match="it is of another map; want that of other"):
        load_archive(
            tmp_path,
            Recomputed.of(database, MemoryLog(), dataclasses_replace(MAP, name="other")),
            HOUR,
        )


@pytest.mark.slow
async def test_a_changed_archive_row_is_found(tmp_path: Path, database: Database) -> None:
    """Any change of a row reports exactly that row."""
    log = MemoryLog()
    fill(log, 3, count=60)
    house = await settled_house(tmp_path, log)
    found = Recomputed.of(database, log, MAP)
    load_archive(tmp_path, found, HOUR)
    await house.kill()
    await house.archive.close()
    sound = archived_rows(found, HOUR)
    where = sorted(sound)[5]
    (key, start), partition = where
    changed = [(start, {**sound, where: sound[where] | {c: 12_345}}) for c in _COLUMNS]
    changed.append((start, {one: row for one, row in sound.items() if one != where}))
    far = start + 900 * HOUR_MS
    changed.append((far, {**sound, ((key, far), partition): sound[where]}))
    for window, archived in changed:
        differing = DifferenceLog(10)
        found.load_archived(HOUR, archived)
        assert compare_archive(database, HOUR, differing, NOW_MS, early=False) == 1
        assert [one.what for one in differing.kept] == ["archive"]
        assert str(window) in differing.kept[0].where


def archived_rows(found: Recomputed, layer: Layer) -> Archived:
    """Return the rows in the table of archived rows."""
    rows = {}
    for part, *row in found.database.rows(f"FROM archived_{layer.name}"):
        key, start, values = tuple(row[: len(layer.key)]), row[len(layer.key)], row[-7:]
        columns = [acc.column for acc in layer.accumulators]
        rows[(key, start), part] = dict(zip(columns, values, strict=True))
    return rows


_COLUMNS = ("events", "n_delay", "sum_delay", "min_delay", "max_delay", "sqlo_delay", "sqhi_delay")


def differing_in_archive(
    found: Recomputed, archived: Archived, layer: Layer = HOUR, *, early: bool = False
) -> int:
    """Return how many rows differ from these in the archive."""
    found.load_archived(layer, archived)
    return compare_archive(found.database, layer, DifferenceLog(1), NOW_MS, early=early)


def test_open_rows_may_be_archived_but_not_with_another_value(database: Database) -> None:
    """A closed one has to be there, unless its time to live has passed."""
    found = Recomputed.of(database, small_log(), MAP)
    assert differing_in_archive(found, {}) == 2
    forever = dataclasses_replace(HOUR, archive_ttl_ms=1_000)
    assert differing_in_archive(found, {}, forever) == 0
    place = (("LGA", "UA"), DAY_MS)
    stored = {"events": 1, "n_delay": 1, "sum_delay": 7, "min_delay": 7, "max_delay": 7}
    stored |= {"sqlo_delay": 49, "sqhi_delay": 0}
    assert differing_in_archive(found, {(place, 1): stored}) == 2
    assert differing_in_archive(found, {(place, 1): stored | {"events": 2}}) == 3
    assert differing_in_archive(found, {(place, 0): stored}) == 3


def test_halves_of_a_sum_of_squares_may_be_split_anyhow(database: Database) -> None:
    """How they are depends on chunks; their sum does not."""
    found = Recomputed.of(database, small_log(), MAP)
    place = (("JFK", "UA"), HOUR_MS)
    stored = {"events": 1, "n_delay": 1, "sum_delay": 2**62, "min_delay": 2**62}
    stored |= {"max_delay": 2**62}
    high, low = divmod(2**124, 2**64)
    for split, differing in (((high, low), 1), ((high - 1, low + 2**64), 1), ((high, 1), 2)):
        halves = dict(zip(("sqhi_delay", "sqlo_delay"), split, strict=True))
        assert differing_in_archive(found, {(place, 0): stored | halves}) == differing


def test_open_rows_that_are_sent_early_have_to_be_archived(database: Database) -> None:
    """Their own layer has them and, with their part of it, so does a coarser one."""
    log = small_log()
    found = Recomputed.of(database, log, MAP)
    assert differing_in_archive(found, {}) == 2
    assert differing_in_archive(found, {}, early=True) == 3
    day = (("UA",), DAY_MS)
    assert day not in shown(found, DAY)
    with Database() as other:
        early = Recomputed.of(other, log, MAP, early=True)
        assert early.rows(HOUR) == found.rows(HOUR)
        assert shown(early, DAY)[day][0] == 1


def differing_answers(
    found: Recomputed, answers: dict[str, dict[Place, dict[str, Any]]]
) -> tuple[int, DifferenceLog]:
    """Return the number of rows that differ from answers, and the differences."""
    differing = DifferenceLog(10)
    found.load_answers(HOUR, answers, differing)
    report = compare_answers(found.database, HOUR, list(answers), differing, NOW_MS)
    assert report.expected == 3
    return report.differing, differing


@pytest.mark.parametrize("change", ["none", "missing", "surplus", "value", "end"])
def test_a_changed_answer_is_found(database: Database, change: str) -> None:
    """A row more, a row less, another value, and another end."""
    found = Recomputed.of(database, small_log(), MAP)
    answers = answered(found, HOUR)
    place = (("JFK", "UA"), 0)
    got = answers[place]
    if change == "missing":
        del answers[place]
    elif change == "surplus":
        answers[("JFK", "UA"), 7 * HOUR_MS] = got
    elif change == "end":
        answers[place] = got | {"window_end": HOUR_MS - 1}
    elif change == "value":
        answers[place] = got | {"sum_delay": 0}
    count, differing = differing_answers(found, {"http://one": answers})
    assert count == len(differing.kept) == (change != "none")


@pytest.mark.parametrize("change", [{"count": 3.0}, {"more": 1}])
def test_answers_of_other_columns_are_found(database: Database, change: dict[str, Any]) -> None:
    """An integer that became a float, and a measure that nobody declared."""
    found = Recomputed.of(database, small_log(), MAP)
    answers = answered(found, HOUR)
    place = (("JFK", "UA"), 0)
    answers[place] |= change
    count, differing = differing_answers(found, {"http://one": answers})
    assert count == 1
    assert differing.kept[0].where == f"hour columns {next(iter(change))} at http://one"


@pytest.mark.slow
def test_a_measure_that_is_off_by_one_bit_is_found(database: Database) -> None:
    """Integers are all exact, those beyond the integers of floats too."""
    found = Recomputed.of(database, small_log(), MAP)
    for place, row in answered(found, HOUR).items():
        for name in (measure.name for measure in HOUR.measures):
            value = row[name]
            for near in {
                int: (value - 1, value + 1),
                float: (math.nextafter(value, -math.inf), math.nextafter(value, math.inf)),
            }[type(value)]:
                changed = answered(found, HOUR)
                changed[place] = row | {name: near}
                assert differing_answers(found, {"http://one": changed})[0] == 1, (place, name)


def test_a_closed_row_is_asked_of_every_worker_and_an_open_one_of_its_owner(
    database: Database,
) -> None:
    """Another worker may have an older version of an open row, or no version."""
    found = Recomputed.of(database, small_log(), MAP)
    owner = answered(found, HOUR)
    other = dict(owner)
    place = (("LGA", "UA"), DAY_MS)
    other[place] = owner[place] | {"version": 0, "count": 9}
    answers = {"http://one": other, "http://two": owner}
    assert differing_answers(found, answers)[0] == 0
    del other[place]
    assert differing_answers(found, answers)[0] == 0
    del other[("JFK", "UA"), 0]
    assert differing_answers(found, answers)[0] == 1


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
def test_a_changed_number_of_the_ledger_is_found(
    database: Database, place: tuple[str, ...]
) -> None:
    """One more in any column is one difference; an equal ledger has no difference."""
    partitions = partitions_of(Recomputed.of(database, small_log(), MAP))
    ledger = served(partitions)
    if place:
        inner = ledger
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = inner.get(place[-1], 0) + 1
    found = DifferenceLog(10)
    compare_ledgers(MAP, {"flights": partitions}, {"http://one": ledger}, found)
    assert len(found.kept) == (1 if place else 0), found.kept


def test_a_worker_answers_only_for_the_partitions_it_owns(database: Database) -> None:
    """Two workers with a partition each."""
    partitions = partitions_of(Recomputed.of(database, small_log(), MAP))
    ledgers = {f"http://{one.number}": served([one]) for one in partitions}
    found = DifferenceLog(10)
    compare_ledgers(MAP, {"flights": partitions}, ledgers, found)
    assert found.kept == []


def with_ids(**changes: Any) -> Map:
    """Return the small map with ids."""
    source = dataclasses_replace(MAP.sources[0], id_field="id", ids_max=1_000)
    return dataclasses_replace(MAP, sources=(dataclasses_replace(source, **changes),))


async def test_duplicates_are_those_of_a_worker(tmp_path: Path, database: Database) -> None:
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
    for number, one in enumerate(Recomputed.of(database, log, themap).ledgers()):
        owner = house.owners.get(RAW, number)
        assert owner is not None
        ledger = {name: count for name, count in owner.state.meta.ledger.items() if count}
        assert one == ledger
        counts.append(one["events.duplicate"])
    assert min(counts) > 10
    await house.kill()
    await house.archive.close()


@pytest.mark.parametrize("text", ["1ms", "7m", "1h", "7d", "month", "year"])
def test_windows_are_those_of_the_calendar(text: str) -> None:
    """They are, over all years that events have, their first and last moments too."""
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
        assert first_window(layer, time_ms) == layer.window.first_start(time_ms)
        if layer.window.is_calendar:
            date = dt.datetime(1970, 1, 1) + dt.timedelta(milliseconds=time_ms)  # noqa: DTZ001
            first = date.replace(day=1, month=date.month if text == "month" else 1)
            day = first.date().toordinal() - dt.date(1970, 1, 1).toordinal()
            assert start == day * DAY_MS


def test_sums_of_floats_may_be_off_by_their_order_and_no_more() -> None:
    """Numbers of all sizes, added in many orders; one of them left out is far off."""
    chance = random.Random(1)
    values = [chance.choice([1e16, 1.0, -1e16, 1e-3]) * chance.random() for _ in range(300)]
    sums = PlainSums(is_float=True)
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
    """Integers are equal as integers, a number rounded once as the nearest float."""
    assert equals(got, want) is same


def test_letters_of_records_that_are_not_there_are_found(database: Database) -> None:
    """A letter there twice counts once; marks of a replay do not count; junk is counted."""
    headers = {
        "topic": RAW, "partition": "1", "offset": "7", "index": "0,3-5", "reason": "json",
        "events": "4", "detail": "",
    }  # fmt: skip
    letters = Letters(database)
    late = {"reason": "late", "layer": "hour"}
    for changes in ({}, {}, late, {"offset": "9", "index": ""}, {"index": f"0-{2**40}"}):
        record = tuple((n, v.encode()) for n, v in copy.copy(headers | changes).items())
        letters.take([Record(0, 0, b"", record)])
    letters.take([Record(0, 0, b"", (("treasure-map-replay", b""),))])
    letters.take([Record(0, 0, b"", (("topic", b"t"),))])
    letters.load()
    assert set(database.rows('SELECT "offset", index, named FROM dead_letters')) == {
        *((7, index, "json") for index in (0, 3, 4, 5)), (9, -1, "json"),
    }  # fmt: skip
    assert database.all("SELECT list(index) FROM late_letters") == [([0, 3, 4, 5],)]
    assert letters.many(RAW, 1, 7)
    assert not letters.many(RAW, 1, 9)
    assert letters.unreadable == 2
    events = Events(database, MAP.sources[0], MAP.base_layers("flights"), letters)
    events.partitions[1].skip_to(9)
    events.settle()
    assert [(one.where, one.got) for one in events.letters_differing()] == [
        ("letter of flights.raw[1] offset 7", "a letter of a record that is not there")
    ]
