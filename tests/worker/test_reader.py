"""The reader: every answer is the fold of the raw log up to the offsets that it names."""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

import agents.query.reader
from agents.query.reader import FamilyResult, Reader
from tables.archive.cache import ArchiveCache
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import CellRange
from tables.model.cost import QueryCost
from tables.model.errors import PartialError, QueryError
from tables.model.layer import Map
from tables.query.answer import row_end
from tables.query.family import FamilyQuery, parse_family_query
from tables.query.live import LiveRead, LiveRows
from tables.record.heartbeat import decode_heartbeat
from tables.state.cell import in_order, measures_of
from tests.support.common import DAY_MS, HOUR_MS, MemoryLog, dataclasses_replace, seeds, small_map
from tests.support.general_way import use_frames
from tests.support.local_worker import RAW, LocalWorker, fill
from tests.support.owned import DAYS, HOURS, KEYED, LIMITS, UNKEYED, Owned
from tests.support.waiting import until
from tests.support.web_support import FrameCells, frame, stored


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[EmbeddedArchive]:
    """Return a closed archive that is closed again at the end."""
    made = EmbeddedArchive(tmp_path / "archive")
    yield made
    await made.close()


def folded(house: LocalWorker, as_of: dict[int, int]) -> dict[tuple[Any, ...], list[int | None]]:
    """Return the delays of each hour cell, from the raw log up to these offsets, by rule 1."""
    found: dict[tuple[Any, ...], list[int | None]] = {}
    for partition, stop in as_of.items():
        newest = floor = -(2**62)
        for record in house.log.records.get((RAW, partition), [])[:stop]:
            if record.value is not None:
                event = orjson.loads(record.value)
                at = event["at"]
                window = at // HOUR_MS * HOUR_MS
                if window + HOUR_MS > floor:
                    key = (event["origin"], event["carrier"], window)
                    found.setdefault(key, []).append(event["delay"])
            else:
                at = decode_heartbeat(record.headers[0][1])
            newest = max(newest, at)
            floor = max(floor, newest - HOURS.allowed_lateness_ms)
    return found


def expected(
    house: LocalWorker, query: FamilyQuery, as_of: dict[int, int]
) -> list[tuple[Any, ...]]:
    """Return start, key, count, sum and least delay of each row, by plain Python."""
    rows: dict[tuple[Any, ...], list[int | None]] = {}
    for (origin, carrier, window), delays in folded(house, as_of).items():
        key = {"origin": origin, "carrier": carrier}
        passes = all(key[name] in values for name, values in query.keys.values.items())
        passes &= all(key[name].startswith(text) for name, text in query.keys.prefixes.items())
        if passes and query.from_ms <= window < query.to_ms:
            start = query.from_ms
            if query.step is not None:
                start = max(start, query.step.start(window))
            group = tuple(key[field.name] for field in query.rows.key)
            rows.setdefault((start, *group), []).extend(delays)
    answers = []
    for place, delays in sorted(rows.items()):
        known = [delay for delay in delays if delay is not None]
        answers.append(
            (*place, len(delays), *((sum(known), min(known)) if known else (None, None)))
        )
    return answers


def given(query: FamilyQuery, answer: FamilyResult) -> list[tuple[Any, ...]]:
    """Return the rows of an answer in the form and order of :func:`expected`."""
    rows = in_order(answer.rows, ["window_start", *query.rows.key_columns])
    measures = measures_of(query.rows, rows)
    return [
        (*(row[name] for name in ("window_start", *query.rows.key_columns)),
         *(measure[name] for name in ("count", "sum_delay", "min_delay")))
        for row, measure in zip(rows.to_dicts(), measures, strict=True)
    ]  # fmt: skip


def some_query(rng: random.Random, themap: Map) -> FamilyQuery:
    """Return a request to the family of hours, over some of its days."""
    start, stop = sorted(rng.sample(range(-5, 11 * 24), 2))
    ends = [("from", str(start * HOUR_MS)), ("to", str(stop * HOUR_MS))]
    words = rng.choice([ends, ends, ends, ends[:1], ends[1:], []])
    words += rng.choice([[], [("key.carrier", "UA")], [("key.origin", "JFK")],
                         [("key.origin", "JFK"), ("key.carrier", "AA")],
                         [("key.carrier", "UA"), ("key.carrier", "AA")],
                         [("prefix.carrier", "U")]])  # fmt: skip
    words += rng.choice([[], [("group", "-")], [("group", "carrier")],
                         [("group", "origin"), ("group", "carrier")]])  # fmt: skip
    words += rng.choice([[], [("step", "1h")], [("step", "6h")], [("step", "1d")],
                         [("step", "5h")], [("step", "7h")], [("step", "36h")],
                         [("step", "month")]])  # fmt: skip
    return parse_family_query(themap, "hour", words, LIMITS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("themap", [KEYED, UNKEYED], ids=["keyed", "merged"])
async def test_every_answer_is_the_fold_of_its_prefix(
    themap: Map,
    seed: int,
    archive: EmbeddedArchive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is after any folds, emissions, settlements, evictions, merges and restarts."""
    monkeypatch.setattr(agents.query.reader, "TORN_WAIT_S", 0)
    if seed % 2:
        use_frames(monkeypatch)
    rng = random.Random(seed)
    await archive.open(themap)
    house = LocalWorker(MemoryLog(), archive, tmp_path / "state", themap)
    fill(house.log, seed, keyed=themap is KEYED)
    await house.restore()
    reader = Reader(
        themap, Owned(house), ArchiveCache(archive, 100_000), LIMITS, lambda: 10 * DAY_MS
    )
    coarse = 0
    for _ in range(60):
        for topic in rng.choices(list(themap.inputs()), k=rng.randint(0, 4)):
            await house.step(topic, rng.choice([1, 5, 40]))
        if rng.random() < 0.05:
            await house.kill()
            await house.restore()
        query = some_query(rng, themap)
        answer = await reader.answer(query)
        while answer.exactness != "exact":
            # Parts are on their way through the layer's topic, or will be with the next emission.
            topic = themap.input_topic(themap.layer("hour"))
            await until(functools.partial(house.step, topic, 1_000), 60)
            answer = await reader.answer(query)
        query = answer.query
        assert given(query, answer) == expected(house, query, answer.as_of)
        coarse += any(segment.name != "hour" for segment in answer.plan.segments)
    await house.settle()
    for _ in range(30):
        query = some_query(rng, themap)
        answer = await reader.answer(query)
        query = answer.query
        assert given(query, answer) == expected(house, query, answer.as_of)
        coarse += any(segment.name != "hour" for segment in answer.plan.segments)
        found = folded(house, answer.as_of)
        starts = [window for _, _, window in found]
        if query.asked.asked_from_ms is None and query.asked.to_ms > min(starts):
            assert query.from_ms == min(starts)
        if query.asked.asked_to_ms is None:
            assert query.to_ms >= max(starts) + HOUR_MS
        for start in answer.rows["window_start"]:
            assert query.from_ms <= start < row_end(query, start) <= query.to_ms
    assert coarse > 3, "coarser layers are used"
    await house.kill()


@pytest.mark.parametrize("themap", [KEYED, UNKEYED], ids=["keyed", "merged"])
async def test_a_base_layer_that_came_later_answers_from_then_on(
    themap: Map, archive: EmbeddedArchive, tmp_path: Path
) -> None:
    """Earlier windows are refused, not told to be empty; an older layer has all of them."""
    old = dataclasses_replace(HOURS, name="old")
    first = dataclasses_replace(themap, layers=(old,), digest="first")
    later = dataclasses_replace(themap, layers=(old, *themap.layers), revision=2, digest="later")
    await archive.open(first)
    house = LocalWorker(MemoryLog(), archive, tmp_path / "state", first)
    fill(house.log, 3, keyed=themap is KEYED)
    await house.restore()
    for _ in range(10):
        await house.step(RAW, 10)
    await house.kill()
    await archive.close()
    await archive.open(later)
    house = LocalWorker(house.log, archive, tmp_path / "state", later)
    await house.settle()
    reader = Reader(
        later, Owned(house), ArchiveCache(archive, 100_000), LIMITS, lambda: 10 * DAY_MS
    )
    words = [("from", "0"), ("to", str(10 * DAY_MS)), ("step", "1h")]
    with pytest.raises(QueryError, match="the map has had hour only since") as refused:
        await reader.answer(parse_family_query(later, "hour", words, LIMITS))
    start = int(str(refused.value).split("range from ")[1].split(" ")[0])
    assert DAY_MS < start < 3 * DAY_MS
    for family, from_ms in (("hour", start), ("old", 0)):
        words[0] = ("from", str(from_ms))
        query = parse_family_query(later, family, words, LIMITS)
        answer = await reader.answer(query)
        assert given(query, answer) == expected(house, query, answer.as_of)
        assert answer.rows.height > 20
    # An open start is the first that can be answered.
    answer = await reader.answer(parse_family_query(later, "hour", words[2:], LIMITS))
    assert answer.query.from_ms == start
    assert given(answer.query, answer) == expected(house, answer.query, answer.as_of)
    every = CellRange(-(10**12), 10**12)
    with pytest.raises(QueryError, match="the map has had it only since"):
        await reader.layer(later.layer("hour"), every)
    found = await reader.layer(later.layer("hour"), every, from_first=True)
    starts = [*found.live["window_start"], *found.archived["window_start"]]
    assert min(starts) >= start
    await house.kill()


class Younger(FrameCells):
    """Cells that are a second younger each time that they are read."""

    async def read(
        self, reads: Sequence[LiveRead], cost: QueryCost, until: float
    ) -> list[LiveRows]:
        """Return rows and facts."""
        self.fresh_ms += 1_000
        return await super().read(reads, cost, until)


async def test_an_answer_is_as_young_and_as_whole_as_it_is_wanted(
    archive: EmbeddedArchive,
) -> None:
    """The caller may want younger data, which is waited for, or refuse an answer without owners."""
    themap, now_ms = small_map(), 100_000
    await archive.open(themap)
    live = Younger(frame([stored()]), {0, 1})
    live.fresh_ms = now_ms - 10_000
    reader = Reader(themap, live, ArchiveCache(archive, 0), LIMITS, lambda: now_ms)
    words = [("from", "0"), ("to", str(DAY_MS))]
    wanted = [*words, ("max_staleness_ms", "2500"), ("partial", "refuse")]
    young = parse_family_query(themap, "hour", wanted, LIMITS)
    answer = await reader.answer(young)
    assert (answer.data_age_ms, answer.exactness, answer.rows.height) == (2_000, "exact", 1)
    live.served = {0}
    with pytest.raises(PartialError, match="some owners do not answer"):
        await reader.answer(young)
    answer = await reader.answer(parse_family_query(themap, "hour", words, LIMITS))
    assert (answer.exactness, answer.rows.height) == ("partial", 1)


async def test_rows_that_have_expired_are_not_remembered(tmp_path: Path) -> None:
    """The archive leaves them out; so does a cache of its earlier rows."""
    kept = dataclasses_replace(HOURS, archive_ttl_ms=HOUR_MS)
    themap = small_map(layers=(kept, DAYS))
    now_ms = [HOUR_MS + 1]
    archive = EmbeddedArchive(tmp_path, lambda: now_ms[0])
    await archive.open(themap)
    rows = frame([stored(hour=0), stored(hour=1)])
    await archive.write(kept, rows, rows["window_start"])
    live = FrameCells(frame([]), {0, 1})
    live.archived_ms = live.evicted_ms = 5 * HOUR_MS
    reader = Reader(themap, live, ArchiveCache(archive, 1 << 20), LIMITS, lambda: now_ms[0])
    for now, hours in ((HOUR_MS + 1, [0, 1]), (2 * HOUR_MS, [1]), (3 * HOUR_MS, [])):
        now_ms[0] = now
        found = (await reader.layer(kept, CellRange(0, 5 * HOUR_MS))).archived["window_start"]
        assert sorted(found) == [hour * HOUR_MS for hour in hours]
        again = (await archive.read(kept, CellRange(0, 5 * HOUR_MS)))["window_start"]
        assert sorted(again) == sorted(found)
    await archive.close()


@pytest.mark.parametrize("themap", [KEYED, UNKEYED], ids=["keyed", "merged"])
async def test_what_lies_before_the_first_window_is_not_looked_for(
    themap: Map, archive: EmbeddedArchive, tmp_path: Path
) -> None:
    """However long the range is, the archive is asked for windows that there are."""
    await archive.open(themap)
    house = LocalWorker(MemoryLog(), archive, tmp_path / "state", themap)
    fill(house.log, 4, keyed=themap is KEYED)
    await house.settle()
    asked: list[CellRange] = []
    read = archive.read

    async def noted(layer: Any, cells: CellRange, cost: QueryCost | None = None) -> Any:
        asked.append(cells)
        return await read(layer, cells, cost)

    archive.read = noted  # type: ignore[method-assign]
    reader = Reader(themap, Owned(house), ArchiveCache(archive, 0), LIMITS, lambda: 10 * DAY_MS)
    ends = str(-365 * 1_000 * DAY_MS), str(365 * 1_000 * DAY_MS)
    words = [("from", ends[0]), ("to", ends[1]), ("key.origin", "JFK")]
    query = parse_family_query(themap, "hour", words, LIMITS)
    answer = await reader.answer(query)
    assert given(query, answer) == expected(house, query, answer.as_of)
    assert answer.plan.cells < 10_000
    await reader.layer(themap.layer("hour"), CellRange(int(ends[0]), int(ends[1])))
    assert asked
    assert min(cells.from_ms for cells in asked) > -30 * DAY_MS
    assert max(cells.to_ms for cells in asked) < 30 * DAY_MS
    await house.kill()
