"""Remembered ids: stable hashes, lookups that find the newest, bounds in rows and blocks."""

from __future__ import annotations

import polars as pl
import pytest

from tables.state import id_table as ids
from tables.state.block import encode_block
from tables.state.id_table import JOIN_BLOCKS, IdTable, hash_ids


def ids_of(first: int, stop: int, until: int = 10) -> pl.DataFrame:
    """Return rows of the ids of these numbers."""
    texts = pl.Series([str(number) for number in range(first, stop)], dtype=pl.String)
    return hash_ids(texts).with_columns(until=pl.lit(until, pl.Int64))


def add(table: IdTable, rows: pl.DataFrame) -> None:
    """Add rows as a delta would."""
    table.add(encode_block(rows), 1)


def test_hashes_are_those_of_xxh3() -> None:
    """They are in journals, so they may never change."""
    assert hash_ids(pl.Series(["", "a", "é\n", "a" * 300])).rows() == [
        (0x99AA06D3014798D8, 0x6001C324468D497F),
        (0xA96FAF705AF16834, 0xE6C632B61E964E1F),
        (0x9B048A8C7FF0224A, 0xFB343100E74CFA25),
        (0x5E563F2CB28D2005, 0xC1D17581D8EB7E21),
    ]


@pytest.mark.parametrize(("chunk", "count"), [(1, 500), (5, 2_000), (100, 6_000), (3_000, 6_000)])
def test_what_was_added_is_found_and_nothing_else(chunk: int, count: int) -> None:
    """Places count from the end; blocks stay few, however small the deltas are."""
    table = IdTable(10**6)
    for first in range(0, count, chunk):
        add(table, ids_of(first, min(first + chunk, count)))
        if first % 7 == 0:
            assert table.find(ids_of(count, count + 10)) == {}
    found = table.find(ids_of(0, count + 100))
    assert {number: one.row for number, one in found.items()} == {
        number: number - count for number in range(count)
    }
    assert len(table.blocks) < 3 * JOIN_BLOCKS
    assert len(table.writes) <= count / chunk * 2.5


def test_of_an_id_that_is_there_twice_the_newest_is_found() -> None:
    """The two may lie in one block or in two; a forgotten id may come again."""
    table = IdTable(100)
    add(table, pl.concat([ids_of(0, 3, 1), ids_of(0, 2, 2)]))
    assert [table.find(ids_of(0, 1))[0].until, table.find(ids_of(2, 3))[0].until] == [2, 1]
    add(table, ids_of(2, 3, 3))
    found = table.find(ids_of(0, 3))
    assert [(one.until, one.row) for _, one in sorted(found.items())] == [
        (2, -3), (2, -2), (3, -1),
    ]  # fmt: skip


def test_hashes_that_are_half_equal_are_told_apart() -> None:
    """The upper 64 bits order the rows; the lower ones decide."""
    table = IdTable(100)
    rows = pl.DataFrame({"high": [7, 7, 7], "low": [1, 2, 3]}, schema_overrides={
        "high": pl.UInt64, "low": pl.UInt64}).with_columns(until=pl.lit(5, pl.Int64))  # fmt: skip
    add(table, rows[:2])
    assert {n: one.row for n, one in table.find(rows).items()} == {0: -2, 1: -1}


def test_the_oldest_are_forgotten_by_time_and_by_number() -> None:
    """Whole blocks by time; past a quarter of surplus exactly down to ids_max."""
    table = IdTable(100)
    add(table, ids_of(0, 50, 10))
    add(table, ids_of(50, 80, 20))
    assert [table.forgettable(time) for time in (9, 10, 19, 20)] == [0, 50, 50, 80]
    add(table, ids_of(80, 125, 20))
    assert table.forgettable(5) == 0
    add(table, ids_of(125, 126, 20))
    assert table.forgettable(5) == 26
    table.forget_oldest(26)
    assert table.rows == 100
    assert min(table.find(ids_of(0, 126))) == 26
    table.forget_oldest(100)
    assert (table.rows, table.find(ids_of(0, 126))) == (0, {})


def test_blocks_come_back_from_the_writes_as_they_were() -> None:
    """They do after joins and evictions within a block, pieces of a block included."""
    table, disk = IdTable(10_000), dict[int, bytes]()
    for first in range(0, 3_000, 30):
        add(table, ids_of(first, first + 30))
        if first % 600 == 0:
            table.forget_oldest(17)
    for write in table.writes:
        if write.data is None:
            del disk[write.sequence]
        else:
            disk[write.sequence] = write.data
    again = IdTable(10_000)
    for sequence, data in sorted(disk.items(), reverse=True):
        again.load(sequence, -1, data)
    assert pl.concat(again.blocks.values()).equals(pl.concat(table.blocks.values()))
    pieces = IdTable(10_000)
    for sequence, block in table.blocks.items():
        for piece in block.iter_slices(100):
            pieces.load(sequence, -1, encode_block(piece))
    assert pieces.find(ids_of(0, 3_000)) == table.find(ids_of(0, 3_000))


def test_what_look_ups_need_is_made_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made after a start, and when ids outgrow their filter: millions take seconds."""
    loaded = IdTable(10**6)
    for number in range(4):
        rows = ids_of(number * 1_000, (number + 1) * 1_000)
        loaded.load(number, -1, encode_block(rows))
    loaded.prepare()
    grown = ids_of(4_000, 9_000)
    make = loaded.merge_ahead(grown, 1)
    assert make is not None
    assert loaded.merge_ahead(ids_of(4_000, 4_001), 1) is None
    loaded.commit_ahead(make())
    monkeypatch.setattr(ids, "_filter_of", None)
    monkeypatch.setattr(pl.DataFrame, "sort", None)
    assert len(loaded.find(ids_of(3_990, 4_010))) == 10
    loaded.add(b"", 1, grown)
    monkeypatch.undo()
    assert len(loaded.find(ids_of(3_990, 9_010))) == 5_010
