"""Contributions: cells added up to the coarser key, cut by partition, and into records that fit."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.model.keyhash import key_hashes
from tables.state import contribution
from tables.state.cell import cell_schema
from tables.state.contribution import Contribution, added_up, decode_cells, split_cells
from tables.state.journal import Announcement
from tests.support.common import HOUR_MS, dataclasses_replace, small_map
from tests.support.state_support import measured

MAP = small_map()
HOUR, DAY = MAP.layer("hour"), MAP.layer("day")

HOURS = st.dictionaries(
    st.tuples(st.sampled_from("JLE"), st.sampled_from(["UA", "AA"]), st.integers(-2, 2)),
    st.tuples(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=3), st.integers(1, 9)),
)
"""Delays and version, by origin, carrier and hour."""


@given(HOURS)
def test_cells_add_up_to_the_coarser_key(
    hours: dict[tuple[str, str, int], tuple[list[int], int]],
) -> None:
    """Every accumulator, each hour for itself, with the largest version."""
    rows = [
        {"key_origin": origin, "key_carrier": carrier, "window_start": hour * HOUR_MS}
        | {"version": version}
        | measured(delays)
        for (origin, carrier, hour), (delays, version) in hours.items()
    ]
    found: dict[tuple[str, int], dict[str, int]] = {}
    for row in added_up(HOUR, DAY, pl.DataFrame(rows, schema=cell_schema(HOUR))).to_dicts():
        found[row.pop("key_carrier"), row.pop("window_start")] = row
    assert found.keys() == {(carrier, hour * HOUR_MS) for _, carrier, hour in hours}
    for (carrier, start), row in found.items():
        parts = [p for (_, c, hour), p in hours.items() if (c, hour * HOUR_MS) == (carrier, start)]
        want = measured([delay for delays, _ in parts for delay in delays])
        squares = [(r.pop("sqhi_delay") << 64) + r.pop("sqlo_delay") for r in (row, want)]
        assert squares[0] == squares[1]
        assert row == want | {"version": max(version for _, version in parts)}


def test_cells_of_the_same_key_are_contributions_as_they_are() -> None:
    """Nothing is to be added up on the way to a merge stage."""
    frame = cells(5)
    assert added_up(HOUR, dataclasses_replace(HOUR, name="same"), frame) is frame


def cells(count: int) -> pl.DataFrame:
    """Return contributions to the day layer, each of a carrier of its own."""
    schema = cell_schema(DAY)
    number = pl.int_range(count, eager=True)
    columns = {name: pl.repeat(1, count, dtype=pl.Int64, eager=True) for name in schema}
    columns |= {
        "key_carrier": "carrier-" + number.cast(pl.String),
        "window_start": number % 3 * HOUR_MS,
        "version": number,
    }
    return pl.DataFrame(columns).cast(schema).select(list(schema))  # type: ignore[arg-type]


@pytest.mark.parametrize("bytes_max", [1, 1_000, 50_000, 4 << 20])
def test_contributions_are_cut_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch, bytes_max: int
) -> None:
    """Each stands once, in the partition of its key, in a block that is small enough."""
    monkeypatch.setattr(contribution, "BLOCK_BYTES_MAX", bytes_max)
    frame = cells(500)
    found = []
    for target, block in split_cells(DAY, frame):
        rows = decode_cells(Contribution("hour", 1, 0, Announcement(0, 0), block), DAY)
        hashes = key_hashes(rows, DAY.key_columns).cast(pl.Int64) % DAY.partitions
        assert (hashes == target).all()
        assert rows.height == 1 or rows.estimated_size() <= 2 * bytes_max
        found.append(rows)
    together = pl.concat(found).sort("contributed")
    assert together["key_carrier"].to_list() == frame["key_carrier"].to_list()
    assert together["contributed"].to_list() == list(range(500))
    assert len(found) == DAY.partitions or bytes_max < 1 << 20
