"""Layer tables: the cells of brute force, through merges, evictions and restores."""

import random
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.model.window import NEVER_MS
from tables.state import layer_table as table_module
from tables.state.block import TupleRows, encode_block
from tables.state.block_table import BlockWrite
from tables.state.cell import cell_schema, measures_of
from tables.state.journal import Announcement
from tables.state.layer_table import SMALL_TAIL_MAX, TAIL_BLOCKS_MAX, FoldTable
from tables.state.rollup_table import RollupTable
from tests.support.common import DAY_MS, HOUR_MS, accumulators, dataclasses_replace
from tests.support.state_support import (
    DAY,
    HOUR,
    cells_of,
    day_block,
    hour_block,
    hour_rows,
    reload,
)

ORIGINS = st.sampled_from(["JFK", "LGA"])
CARRIERS = st.sampled_from(["UA", "AA"])
HOURS = st.integers(-1, 3).map(lambda hour: hour * HOUR_MS)
DELAYS = st.integers(-(2**62), 2**62)
SEEDS = st.integers(0, 9).map(random.Random)

# Steps over a table: blocks to add come most often, so that the tail fills up and merges by itself.
ADD = st.lists(st.tuples(ORIGINS, CARRIERS, HOURS, DELAYS), min_size=1, max_size=4)
FOLD_STEPS = st.lists(
    st.one_of(
        ADD, ADD, ADD, st.just("merge"), SEEDS, st.sets(HOURS, min_size=1).map(frozenset)
    ),
    max_size=40,
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def small_tails() -> Iterator[None]:
    """Let few rows be merged, so that all kinds of merges happen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "TAIL_ROWS_MAX", 12)
        patch.setattr(table_module, "AHEAD_ROWS_MIN", 6)
        yield


@given(FOLD_STEPS)
def test_partial_cells_add_up_in_any_order_of_steps(steps: list[object]) -> None:
    """A fold table is the sum of all rows added and not evicted; its store says the same."""
    table = FoldTable(HOUR)
    disk: dict[int, BlockWrite] = {}
    expected: dict[tuple[Any, ...], tuple[int, int, int]] = {}
    for version, step in enumerate(steps):
        if isinstance(step, list):
            # A delta's block holds a cell once.
            cells = {row[:3]: row for row in step}.values()
            rows = hour_rows(cells, small=len(cells) < 3)
            if version % 3 and (make := table.merge_ahead(rows, version)) is not None:
                table.commit_ahead(make())
            table.add(encode_block(rows), version, rows if version % 2 else None)
            for *identity, delay in cells:
                events, total, _ = expected.get(tuple(identity), (0, 0, 0))
                expected[tuple(identity)] = (events + 1, total + delay, version)
        elif isinstance(step, frozenset):
            table.evict(sorted(step))
            expected = {cell: v for cell, v in expected.items() if cell[2] not in step}
        elif isinstance(step, random.Random):
            reload(table, disk, step)
        elif table.rows:
            table.merge()
        assert table.versions == newest(expected)
        newest_blocks = list(table.blocks.values())[-TAIL_BLOCKS_MAX - 1 :]
        assert len(table.blocks) <= TAIL_BLOCKS_MAX or (
            sum(block.height for block in newest_blocks) <= 12 + table.rows.bit_length()
        )
    assert cells_of(table) == expected
    for start in {0, *table.versions}:
        some = {cell: value for cell, value in expected.items() if cell[1:] == ("UA", start)}
        found = table.collect_in(start, start + HOUR_MS, {"key_carrier": "UA"})()
        assert cells_of(table, found) == some
    reload(table, disk, random.Random(0))
    assert cells_of(table) == expected
    assert table.versions == newest(expected)


def newest(cells: dict[tuple[Any, ...], tuple[int, int, int]]) -> dict[object, int]:
    """Return the largest version by window."""
    found: dict[object, int] = {}
    for cell, (_, _, version) in cells.items():
        found[cell[-1]] = max(version, found.get(cell[-1], -1))
    return found


SENDERS = st.integers(0, 1)
CONTRIBUTE = st.lists(st.tuples(CARRIERS, HOURS, SENDERS, DELAYS), min_size=1, max_size=4)
ANNOUNCE = st.tuples(SENDERS, HOURS)
ROLLUP_STEPS = st.lists(
    st.one_of(
        CONTRIBUTE, CONTRIBUTE, CONTRIBUTE, ANNOUNCE, st.just("merge"), SEEDS,
        st.sets(st.sampled_from([-DAY_MS, 0]), min_size=1).map(frozenset),
    ),
    max_size=40,
)  # fmt: skip


@given(ROLLUP_STEPS)
def test_contributions_replace_each_other_until_they_settle(steps: list[object]) -> None:
    """A rollup table is the sum of the latest contributions; settling changes no cell."""
    table = RollupTable(DAY, HOUR)
    disk: dict[int, BlockWrite] = {}
    latest: dict[tuple[Any, ...], tuple[int, int]] = {}
    for version, step in enumerate(steps):
        if isinstance(step, list):
            # Gathering lets each contribution through once, and none that is final.
            final = {sender: floor for sender, (_, floor) in table.announced.items()}
            rows = {
                row[:3]: row for row in step if row[1] + HOUR_MS > final.get(row[2], NEVER_MS)
            }  # fmt: skip
            if rows:
                table.add(day_block([(*row, version + 100) for row in rows.values()]), version)
            latest |= {row[:3]: (row[3], version) for row in rows.values()}
        elif isinstance(step, frozenset):
            table.evict(sorted(step))
            latest = {row: v for row, v in latest.items() if row[1] // DAY_MS * DAY_MS not in step}
        elif isinstance(step, tuple):
            sender, floor = step
            known = table.announced.get(sender, (NEVER_MS, NEVER_MS))
            table.announced[sender] = Announcement(max(known[0], floor), max(known[1], floor))
        elif isinstance(step, random.Random):
            reload(table, disk, step)
        elif table.rows:
            table.merge()
            single = table.known(pl.Series([-DAY_MS, 0]))
            assert set(single.select(table.contribution).rows()) == unsettled(table, latest)
    expected = days(latest)
    assert cells_of(table) == expected
    assert table.versions == newest(expected)
    reload(table, disk, random.Random(0))
    assert cells_of(table) == expected
    assert table.versions == newest(expected)


def unsettled(table: RollupTable, latest: dict[tuple[Any, ...], tuple[int, int]]) -> set[object]:
    """Return the contributions that may still be replaced."""
    floors = {sender: floor for sender, (_, floor) in table.announced.items()}
    return {row for row in latest if row[1] + HOUR_MS > floors.get(row[2], NEVER_MS)}


def days(
    latest: dict[tuple[Any, ...], tuple[int, int]],
) -> dict[tuple[Any, ...], tuple[int, int, int]]:
    """Return the day cells of the latest contributions."""
    expected: dict[tuple[Any, ...], tuple[int, int, int]] = {}
    for (carrier, start, _), (delay, version) in latest.items():
        cell = (carrier, start // DAY_MS * DAY_MS)
        events, total, newest_version = expected.get(cell, (0, 0, 0))
        expected[cell] = (events + 1, total + delay, max(version, newest_version))
    return expected


def test_the_version_of_a_cell_is_that_of_its_last_change() -> None:
    """Another cell of the same window keeps its own."""
    table = FoldTable(HOUR)
    table.add(hour_block([("JFK", "UA", 0, 1), ("JFK", "AA", 0, 1)]), 5)
    table.add(hour_block([("JFK", "UA", 0, 2)]), 9)
    assert cells_of(table) == {("JFK", "UA", 0): (2, 3, 9), ("JFK", "AA", 0): (1, 1, 5)}
    assert table.versions == {0: 9}


def test_a_contribution_of_an_older_version_does_not_count() -> None:
    """Whichever came first, the one of the larger version at the sender stays."""
    rows = [("UA", 0, 0, 7, 40), ("UA", 0, 0, 3, 39)]
    for order in (rows, rows[::-1]):
        table = RollupTable(DAY, HOUR)
        for version, row in enumerate(order):
            table.add(day_block([row]), version)
        assert [value[:2] for value in cells_of(table).values()] == [(1, 7)]


def test_settled_contributions_are_one_row_a_cell() -> None:
    """Ten senders of one carrier: one row is left when their hour is final, with their version."""
    table = RollupTable(DAY, HOUR)
    table.add(day_block(("UA", 0, sender, sender, 1) for sender in range(10)), 3)
    table.add(day_block([("UA", HOUR_MS, 0, 5, 2)]), 4)
    table.announced = dict.fromkeys(range(10), Announcement(2 * HOUR_MS, HOUR_MS))
    table.merge()
    assert table.rows == 2
    assert cells_of(table) == {("UA", 0): (11, 50, 4)}
    table.add(day_block([("UA", HOUR_MS, 0, 6, 3)]), 6)
    assert cells_of(table) == {("UA", 0): (11, 51, 6)}


def test_contributions_of_a_sender_that_announced_nothing_stay_single() -> None:
    """Missing is minus infinity: another sender's floor settles none of them."""
    table = RollupTable(DAY, HOUR)
    table.add(day_block([("UA", 0, 0, 1, 1), ("UA", 0, 1, 1, 1)]), 3)
    table.announced = {1: Announcement(DAY_MS, DAY_MS)}
    table.merge()
    assert table.known(pl.Series([0]))["source_partition"].to_list() == [0]
    assert cells_of(table) == {("UA", 0): (2, 2, 3)}


@pytest.mark.parametrize("seed", range(5))
def test_a_table_from_the_store_merges_as_the_one_that_was_never_closed(seed: int) -> None:
    """Which blocks are merged, and so the last bits of floats, is the same for every reader."""
    layer = dataclasses_replace(HOUR, accumulators=accumulators("delay", "float"))
    schema = {name: kind for name, kind in cell_schema(layer).items() if name != "version"}
    rng = random.Random(seed)
    tables = FoldTable(layer), FoldTable(layer)
    disk: dict[int, BlockWrite] = {}
    for version in range(60):
        rows = [
            {
                "key_origin": "JFK", "key_carrier": "UA", "window_start": hour * HOUR_MS,
                "events": 1, "n_delay": 1, "sum_delay": rng.random() * 10.0 ** rng.randint(-3, 3),
                "min_delay": 0.0, "max_delay": 0.0, "m2_delay": 0.0,
            }
            for hour in rng.sample(range(50), rng.choice([1, 2, 20]))
        ]  # fmt: skip
        for table in tables:
            table.add(encode_block(pl.DataFrame(rows, schema=schema)), version)
        reload(tables[1], disk, rng)
    one, other = (table.cells().sort("window_start") for table in tables)
    assert one.equals(other)
    heights = [[block.height for block in table.blocks.values()] for table in tables]
    assert heights[0] == heights[1]


def test_a_merge_made_ahead_is_the_merge() -> None:
    """Blocks, the store's writes and the last bits of sums are the same with it and without."""
    layer = dataclasses_replace(HOUR, accumulators=accumulators("delay", "float"))
    schema = {name: kind for name, kind in cell_schema(layer).items() if name != "version"}
    rng = random.Random(5)
    ahead, plain = FoldTable(layer), FoldTable(layer)
    made = used = 0
    for version in range(200):
        rows = TupleRows(
            schema,
            [("JFK", "UA", hour, 1, 1, rng.random(), 0.0, 0.0, 0.0)
             for hour in rng.sample(range(40), rng.randint(1, 5))],
        )  # fmt: skip
        make = ahead.merge_ahead(rows, version)
        if make is not None:
            ahead.commit_ahead(make())
            made += 1
            if rng.random() < 0.3:
                # Rows that are evicted meanwhile make other blocks than those that were merged.
                ahead.evict(gone := rng.sample(range(40), 2))
                plain.evict(gone)
            else:
                used += 1
        for table in (ahead, plain):
            table.add(encode_block(rows), version)
        assert places(ahead) == places(plain)
    assert made > used > 10
    assert cells_bits(ahead) == cells_bits(plain)


def test_sinks_that_ask_for_the_same_windows_share_one_job() -> None:
    """It is of the moment when it was asked for, and a change of the windows makes another one."""
    table = FoldTable(HOUR)
    for version in (1, 2):
        table.add(encode_block(hour_rows([("JFK", "UA", 0, version)], small=True)), version)
    job = table.collect([0])
    assert table.collect([0]) is job
    table.add(encode_block(hour_rows([("JFK", "UA", 0, 5)], small=True)), 3)
    assert table.collect([0]) is not job
    assert job() is job()
    assert cells_of(table, job()) == {("JFK", "UA", 0): (2, 3, 2)}
    assert cells_of(table) == {("JFK", "UA", 0): (3, 8, 3)}


def places(table: FoldTable) -> list[tuple[int, int, bool]]:
    """Return the store's writes without their bytes: groups come in any order."""
    return [(write.sequence, write.version, write.data is None) for write in table.writes]


def cells_bits(table: FoldTable) -> list[list[tuple[object, ...]]]:
    """Return the rows of every block, in the order of blocks."""
    return [sorted(block.rows(), key=str) for block in table.blocks.values()]


def test_small_blocks_wait_and_are_read_as_one() -> None:
    """Up to 64 of them wait; a merge takes them together."""
    table = FoldTable(HOUR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "TAIL_ROWS_MAX", 256)
        for version in range(SMALL_TAIL_MAX):
            rows = hour_rows([("JFK", "UA", version % 3 * HOUR_MS, version)], small=version % 5 > 0)
            table.add(encode_block(rows), version)
        assert len(table.blocks) == SMALL_TAIL_MAX
        assert {cell: v[0] for cell, v in cells_of(table).items()} == {
            ("JFK", "UA", hour * HOUR_MS): len(range(hour, SMALL_TAIL_MAX, 3)) for hour in range(3)
        }
        before = cells_of(table)
        table.add(hour_block([("LGA", "UA", 0, 1)]), SMALL_TAIL_MAX)
        assert len(table.blocks) == 1
    assert cells_of(table) == before | {("LGA", "UA", 0): (1, 1, SMALL_TAIL_MAX)}


def test_a_measure_that_came_later_is_not_known_of_what_came_before() -> None:
    """A cell with rows of an older revision has no value, never half of one; its count is whole."""
    older = dataclasses_replace(HOUR, accumulators=HOUR.accumulators[:1])
    schema = {name: kind for name, kind in cell_schema(older).items() if name != "version"}
    row = {"key_origin": "JFK", "key_carrier": "UA", "window_start": 0, "events": 4}
    block = encode_block(pl.DataFrame([row], schema=schema))
    table = FoldTable(HOUR)
    table.add(block, 1)
    (cell,) = measures_of(HOUR, table.cells())
    assert (cell["count"], cell["mean_delay"], cell["min_delay"]) == (4, None, None)
    table.add(hour_block([("JFK", "UA", 0, 5)]), 2)
    (cell,) = measures_of(HOUR, table.cells())
    assert (cell["count"], cell["mean_delay"], cell["min_delay"]) == (5, None, None)
    table.add(hour_block([("LGA", "UA", 0, 5)]), 3)
    _, cell = measures_of(HOUR, table.cells().sort("key_origin"))
    assert (cell["count"], cell["mean_delay"], cell["min_delay"]) == (1, 5.0, 5)


@pytest.mark.parametrize("kind", ["fold", "rollup"])
def test_an_empty_table_has_no_cells(kind: str) -> None:
    """Reading and evicting before the first event are nothing special."""
    table = FoldTable(HOUR) if kind == "fold" else RollupTable(DAY, HOUR)
    table.evict([0])
    assert table.cells().height == table.rows == 0
    assert table.cells().schema == cell_schema(table.layer)
    assert not table.writes
