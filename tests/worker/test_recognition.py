"""Recognition: archive and journal know each other, and neither goes on with another one."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from agents.partition.owner import Owner
from agents.partition.partition_io import PartitionIO
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.identity import History
from tables.model.errors import (
    ArchiveAwayError,
    FencedError,
    JournalRefusedError,
)
from tables.state.journal import Claim, Claimant, decode_entry, encode_entry
from tables.state.store import PartitionStore
from tests.support.common import DAY_MS, MemoryLog, StoredRecord, flight
from tests.support.local_worker import MAP, RAW, LocalWorker, archived, check, fill
from tests.support.state_support import RAW_PLAN
from tests.support.waiting import until

JOURNAL = RAW_PLAN.journal

Made = Callable[..., Awaitable[LocalWorker]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Made]:
    """Yield a maker of workers, each with folders of its own name; they end with the test."""
    houses: list[LocalWorker] = []

    async def made(name: str, log: MemoryLog, archive: str = "archive") -> LocalWorker:
        opened = EmbeddedArchive(tmp_path / archive)
        await opened.open(MAP)
        house = LocalWorker(log, opened, tmp_path / name)
        house.owners.claimant = Claimant(group="g", node=name, cluster="k")
        houses.append(house)
        return house

    yield made
    for house in houses:
        await end(house)


async def end(house: LocalWorker) -> None:
    """End a worker, as one that is asked to."""
    await house.kill()
    await house.archive.close()


def claims_of(log: MemoryLog, partition: int = 0) -> list[Claim]:
    """Return the claims in a journal."""
    entries = [decode_entry(r.value or b"") for r in log.records.get((JOURNAL, partition), ())]
    return [entry for entry in entries if isinstance(entry, Claim)]


async def test_a_worker_with_another_archive_is_refused_and_the_first_goes_on(make: Made) -> None:
    """It never had the rows; the owner before is not fenced by its claim, and serves on."""
    log = MemoryLog()
    first = await make("first", log)
    events = fill(log, 1, count=40)
    await first.settle()
    second = await make("second", log, "another")
    with pytest.raises(JournalRefusedError) as refused:
        await second.owners.restore(RAW, 0, 1)
    assert "its rows are in another archive" in str(refused.value)
    assert f"got archive {second.archive.id}; want {first.archive.id}, as node first" in str(
        refused.value
    )
    log.put(RAW, 0, flight(11 * DAY_MS, "LGA"))
    await until(first.quiet)
    assert first.fenced == []
    assert first.failures == []
    assert [c.archive for c in claims_of(log)] == [first.archive.id, second.archive.id]
    await check(first, events)


async def test_a_journal_made_anew_over_an_archive_that_stays_is_refused(make: Made) -> None:
    """It is refused before any claim: rows of both would be mixed by their versions."""
    old = MemoryLog()
    fill(old, 1, count=40)
    before = await make("worker", old)
    await before.settle()
    await end(before)
    rows = old.records
    log = MemoryLog()
    fill(log, 2, count=20)
    after = await make("worker", log)
    with pytest.raises(JournalRefusedError, match=r"rows of another journal; got \w{16} of") as no:
        await after.owners.restore(RAW, 0, 1)
    assert f"folder {after.archive.place.removeprefix('folder ')}" in str(no.value)
    assert "its journal is empty" in str(no.value)
    assert "`reset`" in str(no.value)
    assert claims_of(log) == []
    # The topics that the archive belongs to are taken again without a word.
    log.records = rows
    await after.settle()
    assert (await archived(after, "hour"))["events"].sum() == 40


async def test_a_journal_that_another_worker_begins_meanwhile_is_no_other_one(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was empty when it was looked at, and is not any more when the archive answers."""
    log = MemoryLog()
    house = await make("worker", log)
    ask = house.archive.history

    async def history(topic: str, partition: int) -> History | None:
        if (JOURNAL, partition) not in log.records:
            theirs = msgspec.structs.replace(
                RAW_PLAN.claim(0), history="theirs", archive=house.archive.id
            )
            log.records[JOURNAL, partition] = [StoredRecord(0, encode_entry(theirs), 0)]
            await house.archive.remember(topic, partition, History("theirs", "k"))
        known: History | None = await ask(topic, partition)
        return known

    monkeypatch.setattr(house.archive, "history", history)
    await house.owners.restore(RAW, 0, 1)
    assert house.owners.get(RAW, 0) is not None
    assert len(claims_of(log)) == 2


async def test_another_journal_with_the_archive_s_id_is_refused_too(make: Made) -> None:
    """One that was begun while the archive was away, say: its first write finds out."""
    house = await make("worker", MemoryLog())
    await house.archive.remember(RAW, 0, History("before", "elsewhere"))
    fill(house.log, 1, count=20)
    (first,) = [RAW_PLAN.claim(0)]
    entry = encode_entry(msgspec.structs.replace(first, history="mine"))
    house.log.records[JOURNAL, 0] = [StoredRecord(0, entry, 0)]
    with pytest.raises(JournalRefusedError, match="got before of Kafka cluster elsewhere, while"):
        await house.owners.restore(RAW, 0, 1)


async def test_an_archive_that_was_moved_is_the_same(make: Made, tmp_path: Path) -> None:
    """Its id lies in it, so a folder may be renamed and a backup restored."""
    log = MemoryLog()
    events = fill(log, 3, count=40)
    house = await make("worker", log)
    await house.settle()
    await end(house)
    (tmp_path / "archive").rename(tmp_path / "moved")
    house = await make("elsewhere", log, "moved")
    await house.settle()
    await check(house, events)


async def test_a_journal_of_an_older_release_is_adopted_at_the_next_claim(make: Made) -> None:
    """Its claims name no archive; from then on they do, and another archive is refused."""
    log = MemoryLog()
    for partition in (0, 1):
        entry = encode_entry(Claim(MAP.revision, MAP.digest, 2, 0))
        log.records[JOURNAL, partition] = [StoredRecord(0, entry, 0)]
    events = fill(log, 4, count=40)
    house = await make("worker", log)
    await house.settle()
    await check(house, events)
    owner = house.owners.get(RAW, 0)
    assert owner is not None
    meta = owner.state.meta
    assert meta.archive == house.archive.id
    assert await house.archive.history(RAW, 0) == History(meta.history, "k")
    second = await make("second", log, "another")
    with pytest.raises(JournalRefusedError, match="its rows are in another archive"):
        await second.owners.restore(RAW, 0, 1)


async def test_nothing_is_written_before_the_archive_is_known(make: Made) -> None:
    """A worker folds while it is away, and claims again with its id once it is there."""
    log = MemoryLog()
    house = await make("worker", log)
    await house.archive.close()
    fill(log, 5, count=40)
    await house.restore()
    assert [claim.archive for claim in claims_of(log)] == [""]
    owner = house.owners.get(RAW, 0)
    assert owner is not None
    while await house.step(RAW, 1_000):
        pass
    await house.archive.open(MAP)
    with pytest.raises(ArchiveAwayError, match="claimed again once the archive is there"):
        await owner.archive.check()
    assert (await archived(house, "hour")).is_empty()
    await house.owners.claim_anew()
    assert house.fenced == [(RAW, 0), (RAW, 1), *((t, p) for t, p in house.fenced[2:])]
    await house.settle()
    assert [claim.archive for claim in claims_of(log)] == ["", house.archive.id]
    assert (await archived(house, "hour"))["events"].sum() == 40


async def test_a_partition_restored_while_the_archive_opens_is_claimed_again(make: Made) -> None:
    """The claim did not name it, so it would never be written to."""
    house = await make("worker", MemoryLog())
    archive = house.archive
    real = archive.id

    class Late(EmbeddedArchive):
        """It is open, but was not when it was asked for its id first."""

        asked = 0

        @property
        def id(self) -> str:
            self.asked += 1
            return "" if self.asked <= 2 else real

    archive.__class__ = Late
    with pytest.raises(FencedError, match="the archive is there by now"):
        await house.owners.restore(RAW, 0, 1)
    assert await house.owners.restore(RAW, 0, 1) == 0


async def test_another_group_on_the_map_is_told_of_once(
    make: Made, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning has its name and advice; readiness says so for as long as it goes on."""
    log = MemoryLog()
    house = await make("mine", log)
    assert house.owners.rivals.reasons() == []
    fill(log, 6, count=40)
    for _ in range(2):
        await house.restore()
        await claimed_by(house, Claimant(group="other", node="theirs"))
        await house.step(RAW, 5)
    assert house.fenced == [(RAW, 0), (RAW, 0)]
    told = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    (reason,) = house.owners.rivals.reasons()
    assert told == [reason]
    assert reason.startswith("partitions are taken by node theirs of group other: two groups on")


async def test_another_node_of_the_group_is_no_rival(make: Made) -> None:
    """A partition that moves is taken over in the same way."""
    house = await make("mine", MemoryLog())
    fill(house.log, 6, count=40)
    await house.restore()
    await claimed_by(house, Claimant(group="g", node="theirs"))
    await house.step(RAW, 5)
    assert house.fenced == [(RAW, 0)]
    assert house.owners.rivals.reasons() == []


async def claimed_by(house: LocalWorker, claimant: Claimant) -> None:
    """Have another worker, with the same archive, claim the first partition."""
    store = PartitionStore(house.folder.parent / f"of {claimant.node}" / "0")
    io = PartitionIO(RAW_PLAN, 0, house.log, store, archive=house.archive, claimant=claimant)
    await Owner(RAW_PLAN, 0, io).claim()
    store.close()
