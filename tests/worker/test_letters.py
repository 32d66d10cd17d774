"""Letters: events set aside, acknowledged before the position passes them, with their place."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agents.partition.letters
from agents.partition import owner, sinks
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model import ledger
from tables.model.errors import TreasureMapError
from tables.record.letter import Letter, LetterError, index_of, read_letter
from tables.state.journal import Delta, decode_entry
from tests.support.common import HOUR_MS, MemoryLog, StoredRecord, flight
from tests.support.local_worker import MAP, RAW, LocalWorker
from tests.support.waiting import until


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[LocalWorker]:
    """A worker over a log in memory."""
    archive = EmbeddedArchive(tmp_path / "archive")
    await archive.open(MAP)
    house = LocalWorker(MemoryLog(), archive, tmp_path / "state")
    yield house
    await house.kill()
    await archive.close()


def letters(house: LocalWorker, kind: str = "dead") -> list[tuple[Letter, bytes]]:
    """Return the letters in a side topic."""
    found: list[StoredRecord] = []
    for partition in range(MAP.side_partitions):
        found += house.log.records.get((f"small.{kind}", partition), [])
    return [(read_letter(record.headers), record.value or b"") for record in found]


@given(st.lists(st.integers(0, 60), unique=True).map(sorted))
def test_an_index_names_every_place(places: list[int]) -> None:
    """Spans are written with a dash, both ends included."""
    found: list[int] = []
    for span in filter(None, index_of(places).split(",")):
        first, _, last = span.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == places


@given(
    st.builds(
        Letter, st.text(min_size=1), st.integers(0), st.integers(0), st.just("0,3-5"),
        st.integers(0), st.text(), st.text(), st.text(), st.text(), st.integers(0),
        st.none() | st.tuples(st.integers(1), st.integers(1)),
    )
)  # fmt: skip
def test_a_letter_reads_back(letter: Letter) -> None:
    """Its texts may hold any characters."""
    assert read_letter(letter.headers()) == letter


@pytest.mark.parametrize("name", ["topic", "offset", "index", "reason"])
def test_a_record_without_a_letters_headers_is_refused(name: str) -> None:
    """The error names the missing header."""
    headers = Letter("t", 0, 0, "0", 1, "json", "", "").headers()
    with pytest.raises(LetterError, match=name):
        read_letter(tuple(item for item in headers if item[0] != name))
    broken = tuple((key, b"\xff" if key == name else data) for key, data in headers)
    with pytest.raises(LetterError, match="cannot read letter"):
        read_letter(broken)


async def test_a_letter_tells_record_place_and_reason(house: LocalWorker) -> None:
    """A letter has only the bad lines of a record of lines."""
    lines = [flight(1), b"{", flight(2, carrier="x" * 2_000), flight(3)]
    house.log.put(RAW, 1, flight(1))
    house.log.put(RAW, 1, b"\n".join(lines))
    await house.restore()
    await house.step(RAW, 10)
    found = {letter.reason: (letter, value) for letter, value in letters(house)}
    json_letter, value = found["json"]
    assert (json_letter.topic, json_letter.partition, json_letter.offset) == (RAW, 1, 1)
    assert (json_letter.index, json_letter.events, value) == ("1", 1, b"{")
    assert found["key_too_long"][0].index == "2"
    assert found["key_too_long"][1] == lines[2]
    counts = house.owners.get(RAW, 1).state.meta.ledger  # type: ignore[union-attr]
    assert counts["layer.hour.folded"] == 3
    assert ledger.imbalances(counts, 2, ["hour"]) == []


async def test_the_position_waits_for_the_letters(house: LocalWorker) -> None:
    """A letter that may not have landed: no delta is written, and the partition claimed again."""
    house.log.put(RAW, 0, b"{")
    await house.restore()
    house.log.fail_next = "lost"
    await house.step(RAW, 10)
    assert house.fenced == [(RAW, 0)]
    await house.restore()
    assert house.owners.get(RAW, 0).position == 0  # type: ignore[union-attr]
    await house.step(RAW, 10)
    assert house.owners.get(RAW, 0).position == 1  # type: ignore[union-attr]
    assert len(letters(house)) == 1


async def test_too_late_events_go_to_the_late_topic_with_their_layer(house: LocalWorker) -> None:
    """Records before them in the log sealed their window."""
    house.log.put(RAW, 0, b"\n".join([flight(0), flight(5 * HOUR_MS), flight(1), flight(2)]))
    await house.restore()
    await house.step(RAW, 10)
    ((letter, value),) = letters(house, "late")
    assert (letter.index, letter.events, letter.layer) == ("2-3", 2, "hour")
    assert value == b"\n".join([flight(1), flight(2)])


async def test_types_that_no_layer_selects_are_dead_letters(house: LocalWorker) -> None:
    """They are counted too; the map may say that counting is enough."""
    event = json.loads(flight(1)) | {"type": "bus.left"}
    house.log.put(RAW, 0, json.dumps(event).encode())
    await house.restore()
    await house.step(RAW, 10)
    ((letter, _),) = letters(house)
    assert letter.reason == "unclassified"
    assert "bus.left" in letter.detail


async def test_a_chunk_too_large_for_one_delta_is_taken_in_parts(
    house: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing differs but the number of deltas."""
    for number in range(64):
        house.log.put(RAW, 0, flight(number, carrier=f"carrier-{number}-{'x' * 200}"))
    await house.restore()
    monkeypatch.setattr(owner, "DELTA_BYTES_MAX", 7_000)
    await house.step(RAW, 100)
    state = house.owners.get(RAW, 0).state  # type: ignore[union-attr]
    assert state.meta.next_offset == 64
    assert state.tables["hour"].cells().height == 64
    assert state.meta.ledger["layer.hour.folded"] == 64


async def test_a_record_too_large_for_one_delta_is_set_aside(
    house: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be cut, and its partition must go on."""
    chance = random.Random(1)
    many = [flight(1, carrier=chance.randbytes(100).hex()) for _ in range(200)]
    house.log.put(RAW, 0, flight(1))
    house.log.put(RAW, 0, b"\n".join(many))
    house.log.put(RAW, 0, flight(2))
    await house.restore()
    monkeypatch.setattr(owner, "DELTA_BYTES_MAX", 8_000)
    await house.step(RAW, 100)
    counts = house.owners.get(RAW, 0).state.meta.ledger  # type: ignore[union-attr]
    assert counts["unreadable.too_many_cells"] == 1
    assert counts["layer.hour.folded"] == 2
    assert ledger.imbalances(counts, 3, ["hour"]) == []
    ((letter, value),) = letters(house)
    assert (letter.reason, letter.index, value) == ("too_many_cells", "", b"\n".join(many))


async def test_places_that_fill_a_header_go_into_several_letters(
    house: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second line of a record is not an event; no letter is larger than a record."""
    monkeypatch.setattr(agents.partition.letters, "LETTER_INDEX_BYTES_MAX", 100)
    lines = [flight(1) if place % 2 else b"%d?" % place for place in range(200)]
    house.log.put(RAW, 0, b"\n".join(lines))
    await house.restore()
    await house.step(RAW, 10)
    found = letters(house)
    assert len(found) > 1
    assert all(len(letter.index) <= 100 for letter, _ in found)
    assert sum(letter.events for letter, _ in found) == 100
    assert b"\n".join(value for _, value in found) == b"\n".join(lines[::2])
    assert len({letter.identity for letter, _ in found}) == len(found)


async def test_a_value_larger_than_a_letter_goes_into_several(
    house: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is exact, so all can be replayed; only an event of its own size is cut."""
    monkeypatch.setattr(agents.partition.letters, "LETTER_BYTES_MAX", 100)
    lines = [b"%d?%s" % (place, b"x" * 30) for place in range(8)] + [b"y" * 300]
    house.log.put(RAW, 0, b"\n".join(lines))
    await house.restore()
    await house.step(RAW, 10)
    found = letters(house)
    assert [value for letter, value in found if letter.cut] == [b"y" * 100]
    whole = [value for letter, value in found if not letter.cut]
    assert b"\n".join(whole) == b"\n".join(lines[:8])


async def test_a_delta_that_is_too_large_by_itself_blames_no_record(
    house: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker ends in words; a good event does not become a dead letter."""
    house.log.put(RAW, 0, flight(1))
    await house.restore()
    monkeypatch.setattr(owner, "DELTA_BYTES_MAX", 10)
    with pytest.raises(TreasureMapError, match="its content beside its cells is too large"):
        await house.step(RAW, 10)
    assert letters(house) == []


async def test_many_windows_are_evicted_by_several_deltas(
    house: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that one delta has no room for go with the next ones, oldest first."""
    monkeypatch.setattr(sinks, "EVICTED_MAX", 5)
    for hour in range(12):
        house.log.put(RAW, 0, flight(hour * HOUR_MS))
    house.log.put(RAW, 0, flight(100 * HOUR_MS))
    await house.restore()
    await house.step(RAW, 100)
    held = house.owners.get(RAW, 0)
    assert held is not None
    table = held.state.tables["hour"]

    async def only_the_last() -> bool:
        return set(table.versions) == {100 * HOUR_MS}

    await until(only_the_last)
    records = house.log.records["small.journal.flights.raw", 0]
    evictions = [
        len(entry.evicted["hour"])
        for entry in (decode_entry(record.value or b"") for record in records)
        if isinstance(entry, Delta) and entry.evicted
    ]
    assert evictions == [5, 5, 2]


async def test_evictions_that_a_delta_has_no_room_for_wait(
    house: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record that comes with them is taken in all the same."""
    for hour in range(60):
        house.log.put(RAW, 0, flight(hour * HOUR_MS))
    await house.restore()
    await house.step(RAW, 100)
    held = house.owners.get(RAW, 0)
    assert held is not None
    monkeypatch.setattr(held.sinks, "evictable", lambda: {"hour": [2**60] * 100})
    monkeypatch.setattr(owner, "DELTA_BYTES_MAX", 900)
    house.log.put(RAW, 0, flight(60 * HOUR_MS))
    await house.step(RAW, 100)
    assert held.position == 61
    assert letters(house) == []
