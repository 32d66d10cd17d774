"""Workers that take a higher revision of the map: nothing is lost, or called final too early."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from agents.partition.owner import Owner
from agents.query.reader import Reader
from tables.archive.cache import ArchiveCache
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.errors import ArchiveError, OutcomeUnknownError
from tables.model.layer import Map
from tables.query.family import parse_family_query
from tables.state.journal import Snapshot
from tests.support.common import DAY_MS, HOUR_MS, MemoryLog, dataclasses_replace, flight, small_map
from tests.support.local_worker import RAW, LocalWorker, archived, expected
from tests.support.owned import LIMITS, Owned

MINUTE_MS = 60_000
HOUR, DAY = small_map().layers


def revision(number: int, slack_ms: int, lateness_ms: int = 0) -> Map:
    """Return a map with an hour layer of such slack, and the day above it."""
    hour = dataclasses_replace(
        HOUR, max_out_of_orderness_ms=slack_ms, allowed_lateness_ms=lateness_ms
    )
    return small_map(layers=(hour, DAY), revision=number, digest=f"revision {number}")


class Upgrade:
    """One worker of a first revision, then one of another, over the same log, archive and store."""

    def __init__(self, archive: EmbeddedArchive, folder: Path) -> None:
        self.archive, self.folder, self.log = archive, folder, MemoryLog()
        self.house: LocalWorker | None = None

    async def to(self, themap: Map) -> LocalWorker:
        """End the worker there is; start one of this map."""
        if self.house is not None:
            await self.house.kill()
            await self.archive.close()
        await self.archive.open(themap)
        self.house = LocalWorker(self.log, self.archive, self.folder, themap)
        await self.house.restore()
        return self.house

    def owner(self) -> Owner:
        """Return the owner of the source's first partition."""
        assert self.house is not None
        owner = self.house.owners.get(RAW, 0)
        assert owner is not None
        return owner


@pytest.fixture
async def upgrade(tmp_path: Path) -> AsyncIterator[Upgrade]:
    """Yield an upgrade over an archive and a state folder; end its worker after the test."""
    found = Upgrade(EmbeddedArchive(tmp_path / "archive"), tmp_path / "state")
    yield found
    if found.house is not None:
        await found.house.kill()
    await found.archive.close()


def two_hours(log: MemoryLog) -> list[tuple[int, str, str, int | None]]:
    """Write ten events of hour 0 and one of hour 1 to each partition."""
    events: list[tuple[int, str, str, int | None]] = []
    for partition, origin in ((0, "LGA"), (1, "JFK")):
        for at in (*range(10 * MINUTE_MS, 10 * MINUTE_MS + 10), 70 * MINUTE_MS):
            events.append((at, origin, "UA", 1))
            log.put(RAW, partition, flight(at, origin, "UA", 1))
    return events


def is_away(*_: Any, **__: Any) -> Any:
    """Stand for a topic or an archive that does not answer."""
    raise OutcomeUnknownError("away")


SLACKS = {"more": (0, 2 * HOUR_MS), "less": (2 * HOUR_MS, 0), "a bit more": (0, 9 * MINUTE_MS)}


@pytest.mark.parametrize("sink", ["layer topic", "nothing"])
@pytest.mark.parametrize("slacks", SLACKS.values(), ids=SLACKS)
async def test_another_slack_loses_nothing_in_a_coarser_layer(
    upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch, slacks: tuple[int, int], sink: str
) -> None:
    """Sealed cells not sent before the upgrade are sent after it, and announced only then."""
    append = upgrade.log.append

    async def apart_from_days(topic: str, *rest: Any, **named: Any) -> int:
        return is_away() if topic == "small.layer.day" else await append(topic, *rest, **named)

    house = await upgrade.to(revision(1, slacks[0]))
    if sink == "layer topic":
        monkeypatch.setattr(upgrade.log, "append", apart_from_days)
    events = two_hours(upgrade.log)
    while await house.step(RAW, 1_000):
        pass
    monkeypatch.setattr(upgrade.log, "append", append)
    house = await upgrade.to(revision(2, slacks[1]))
    state, hour = upgrade.owner().state, upgrade.owner().plan.layers[0]
    assert state.floor_ms(hour) <= state.closed_ms(hour)
    for partition in (0, 1):
        upgrade.log.put(RAW, partition, 10 * DAY_MS)
    await house.settle()
    rows = (await archived(house, "day")).to_dicts()
    got = {(row["key_carrier"], row["window_start"]): row["events"] for row in rows}
    assert got == {place: count for place, (count, _) in expected(events).items()}


async def test_an_answer_has_what_was_sealed_and_not_archived_before(
    upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is live as long as the archive lacks it: a final answer without it would stay for ever."""

    async def away(*_: Any) -> None:
        raise ArchiveError("away")

    write = upgrade.archive.write
    monkeypatch.setattr(upgrade.archive, "write", away)
    house = await upgrade.to(revision(1, 0))
    two_hours(upgrade.log)
    while await house.step(RAW, 1_000):
        pass
    second = revision(2, 2 * HOUR_MS)
    house = await upgrade.to(second)
    archive = ArchiveCache(upgrade.archive, 1 << 20)
    reader = Reader(second, Owned(house), archive, LIMITS, lambda: 10**12)
    words = [("from", "0"), ("to", str(HOUR_MS)), ("group", "carrier")]
    query = parse_family_query(second, "hour", words, LIMITS)
    answer = await reader.answer(query)
    assert (answer.exactness, answer.final) == ("exact", False)
    assert answer.rows["events"].to_list() == [20]
    monkeypatch.setattr(upgrade.archive, "write", write)
    for partition in (0, 1):
        upgrade.log.put(RAW, partition, 10 * DAY_MS)
    await house.settle()
    answer = await reader.answer(query)
    assert answer.exactness == "exact"
    assert answer.rows["events"].to_list() == [20]


def with_id(number: int, *, has_id: bool) -> Map:
    """Return a map of the hour layer alone, whose source has an id or not."""
    source = dataclasses_replace(small_map().sources[0], id_field="id" if has_id else None)
    return small_map(sources=(source,), layers=(HOUR,), revision=number, digest=f"{number}")


def event(at: int, identity: str) -> bytes:
    """Return an event with an id."""
    fields = {"origin": "LGA", "carrier": "UA", "delay": 1, "id": identity}
    return orjson.dumps({"at": at, "type": "flight.x"} | fields)


@pytest.mark.parametrize("is_wiped", [False, True], ids=["kept", "wiped"])
async def test_a_repeat_is_recognised_after_the_id_was_dropped_and_taken_up_again(
    upgrade: Upgrade, is_wiped: bool
) -> None:
    """The state folder, with the ids of the first revision, may be kept or lost."""

    async def take(*values: bytes) -> None:
        for value in values:
            upgrade.log.put(RAW, 0, value)
        assert upgrade.house is not None
        while await upgrade.house.step(RAW, 1_000):
            pass

    await upgrade.to(with_id(1, has_id=True))
    await take(*(event(number * MINUTE_MS, f"old {number}") for number in range(5)))
    upgrade.owner()._save()
    await upgrade.to(with_id(2, has_id=False))
    await take(event(30 * MINUTE_MS, "new"))
    owner = upgrade.owner()
    covers, parts = owner.capture()
    references = [await owner.append_snapshot(part) for part in parts]
    await owner.append_snapshot(Snapshot(covers, references))
    await upgrade.to(with_id(3, has_id=True))
    # The one is remembered until 3:00; when the other comes, the ids of the first are past.
    await take(event(90 * MINUTE_MS, "x"))
    await take(event(125 * MINUTE_MS, "z"))
    if is_wiped:
        assert upgrade.house is not None
        await upgrade.house.kill()
        shutil.rmtree(upgrade.folder)
        await upgrade.to(with_id(3, has_id=True))
    await take(event(90 * MINUTE_MS, "x"))
    assert upgrade.owner().state.meta.ledger["events.duplicate"] == 1


async def test_a_worker_of_an_older_map_leaves_the_store_as_it_is(upgrade: Upgrade) -> None:
    """It is refused, and does not save a state without the layers that its map lacks."""
    other = dataclasses_replace(HOUR, name="other")
    both = small_map(layers=(HOUR, DAY, other), revision=2, digest="both")
    await upgrade.to(both)
    for number in range(3):
        upgrade.log.put(RAW, 0, flight(number * MINUTE_MS))
    assert upgrade.house is not None
    await upgrade.house.step(RAW, 1)
    await upgrade.house.kill()
    kept = upgrade.folder.with_name("kept")
    shutil.copytree(upgrade.folder, kept)
    upgrade.house = LocalWorker(upgrade.log, upgrade.archive, upgrade.folder, both)
    await upgrade.house.restore()
    await upgrade.house.step(RAW, 2)
    await upgrade.house.kill()
    shutil.rmtree(upgrade.folder)
    kept.rename(upgrade.folder)
    older = LocalWorker(upgrade.log, upgrade.archive, upgrade.folder, small_map())
    with pytest.raises(Exception, match="revision 2"):
        await older.owners.restore(RAW, 0, 1)
    await older.kill()
    await upgrade.house.restore()
    cells = upgrade.owner().state.tables["other"].cells()
    assert cells["events"].to_list() == [3]
