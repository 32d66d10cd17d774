"""The table of a coarser layer: contributions, which replace each other until they settle.

The rules are those of docs/formats/journal.md, number 12.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from tables.model.layer import Layer, Scalar
from tables.model.window import NEVER_MS
from tables.state.block import Block, TupleRows, conform, different, frames_of
from tables.state.cell import cell_schema, in_order, in_parts, merge_rows, whole_only
from tables.state.journal import Announcement
from tables.state.layer_table import LayerTable, Merge
from tables.state.small_merge import SMALL_ROWS_MAX, small_cells

_HEARD = ("window_start", "fine_start", "source_partition")


class RollupTable(LayerTable):
    """Contributions of finer windows: of each one the largest version counts.

    A row is a contribution: the key, ``fine_start``, ``source_partition``, the coarser
    ``window_start``, the value, and ``contributed``, its version at the sender. Rows whose finer
    window is final are added up into *settled* rows, which have null instead of the finer window
    and the sender.
    """

    def __init__(self, layer: Layer, finer: Layer) -> None:
        super().__init__(layer, rollup_schema(layer))
        self.finer = finer
        self.contribution = [*layer.key_columns, "fine_start", "source_partition"]
        self.announced: dict[int, Announcement] = {}
        # The latest finer window of which there is a contribution, by window and sender.
        self._heard: dict[int, dict[int, int]] = {}

    def _cells_of(self, rows: pl.DataFrame) -> pl.DataFrame:
        # Columns are in the order of a cell frame.
        return merge_rows(self._latest(rows), self._cell, self.layer.accumulators)

    def collect_parts_in(
        self, from_ms: int, to_ms: int, key: Mapping[str, Scalar]
    ) -> Callable[[], pl.DataFrame]:
        """Return the maker of the contributions of windows in the range, and the settled cells.

        The columns are those of :func:`rollup_schema`; else it is like :meth:`collect_in`.
        """
        matching, began = self._matching_in(from_ms, to_ms, key), dict(self.began)

        def parts() -> pl.DataFrame:
            rows = matching()
            if rows.height > SMALL_ROWS_MAX:
                return whole_only(self._latest(rows), began)
            return whole_only(self._latest_small(rows).frame(), began)

        return parts

    def _small_of(self, rows: pl.DataFrame) -> pl.DataFrame:
        values_of = self._latest_small(rows).values
        return small_cells(self.layer, map(values_of, self._cell), map(values_of, self._values))

    def _latest_small(self, rows: pl.DataFrame) -> TupleRows:
        """Return the rows that :meth:`_latest` does."""
        names = list(self._stored)
        identity = [names.index(name) for name in self.contribution]
        fine, contributed = names.index("fine_start"), names.index("contributed")
        version = names.index("version")
        settled = []
        single: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        for row in rows.rows():
            if row[fine] is None:
                settled.append(row)
                continue
            contribution = tuple(row[at] for at in identity)
            known = single.get(contribution)
            if known is None or (known[contributed], known[version]) <= (
                row[contributed], row[version],
            ):  # fmt: skip
                single[contribution] = row
        return TupleRows(self._stored, [*settled, *single.values()])

    def _due_for_merge(self, blocks: dict[int, Block]) -> list[int]:
        """Return all: settling needs every row of a contribution at once."""
        return list(blocks)

    def _merge_of(self, blocks: dict[int, Block]) -> Callable[[], Merge]:
        """Keep the latest contributions and add up settled ones, over all blocks."""
        chosen = list(blocks)
        frames = frames_of(blocks.values(), self._stored)
        floors = {sender: one.final_ms for sender, one in self.announced.items()}
        return lambda: Merge.of(chosen, self._settled(self._joined(frames), floors))

    def _settled(self, rows: pl.DataFrame, floors: Mapping[int, int]) -> pl.DataFrame:
        rows = self._latest(rows)
        floor = pl.col("source_partition").replace_strict(
            floors, default=NEVER_MS, return_dtype=pl.Int64
        )
        settles = self.finer.window.ends(pl.col("fine_start")) <= floor
        settled = rows.filter(pl.col("fine_start").is_null() | settles)
        single = rows.filter(pl.col("fine_start").is_not_null() & ~settles)
        added = merge_rows(settled, self._cell, self.layer.accumulators).with_columns(
            pl.lit(0, pl.Int64).alias("contributed"),
            pl.lit(None, pl.Int64).alias("fine_start"),
            pl.lit(None, pl.Int32).alias("source_partition"),
        )
        return pl.concat([conform(added, self._stored), single])

    def evict(self, windows: Sequence[int]) -> None:
        """Forget all cells of these windows."""
        super().evict(windows)
        for window in windows:
            self._heard.pop(window, None)

    def clear(self) -> None:
        """Forget everything, as if no block had ever come."""
        super().clear()
        self._heard.clear()

    def may_know(self, rows: pl.DataFrame) -> bool:
        """Return whether contributions like these may exist; False only if none exists.

        ``rows`` are a delta's. Most are of later finer windows than all before.
        """
        columns = (rows[name].to_list() for name in _HEARD)
        return any(
            fine <= self._heard.get(window, {}).get(sender, NEVER_MS)
            for window, fine, sender in set(zip(*columns, strict=True))
        )

    def _notice(self, block: Block) -> None:
        columns = (block.values(name) for name in _HEARD)
        for window, fine, sender in set(zip(*columns, strict=True)):
            if fine is not None:
                heard = self._heard.setdefault(window, {})
                heard[sender] = max(fine, heard.get(sender, NEVER_MS))

    def known(self, windows: pl.Series) -> pl.DataFrame:
        """Return the largest version held of each single contribution in these coarser windows."""
        rows = self._of_windows(different(windows))()
        rows = rows.filter(rows["fine_start"].is_not_null())
        return rows.group_by(self.contribution).agg(pl.col("contributed").max().alias("known"))

    def _latest(self, rows: pl.DataFrame) -> pl.DataFrame:
        settled = rows.filter(pl.col("fine_start").is_null())
        single = rows.filter(pl.col("fine_start").is_not_null())
        newest = in_parts(single, self.contribution, self._newest)
        # A replacement is younger than the row it replaces, so dropping the old row never lowers
        # the cell's version.
        return pl.concat([settled, newest])

    def _newest(self, rows: pl.DataFrame) -> pl.DataFrame:
        return in_order(rows, ["contributed", "version"]).unique(self.contribution, keep="last")


def rollup_schema(layer: Layer) -> dict[str, pl.DataType]:
    """Return the columns of a rollup table's blocks; those of a delta lack ``version``."""
    cell = cell_schema(layer)
    schema: dict[str, pl.DataType] = {name: cell[name] for name in layer.key_columns}
    schema |= {"fine_start": pl.Int64(), "source_partition": pl.Int32(), "window_start": pl.Int64()}
    schema |= {acc.column: cell[acc.column] for acc in layer.accumulators}
    return schema | {"contributed": pl.Int64(), "version": pl.Int64()}
