"""Dedupe: events whose id was seen before, in log order. Pure.

An event is a duplicate if an id like its own is remembered just before it (docs/formats/journal.md
rule 17). Nearly all ids are new, so all ids of a batch are searched at once. Only events that may
repeat an id are checked one by one, because whether one is kept decides about the next. With ``a``
remembered until 50, and M the greatest time before an event::

    id  M   until
    a   30  90     a duplicate, because 30 < 50
    a   60  90     kept, and remembered until 90: the first one is forgotten at 50
    a   70  90     a duplicate, because 70 < 90
    b   95  90     kept, but not remembered: its windows are sealed
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from agents.decode.event_batch import ID_COLUMN
from tables.model.layer import Layer
from tables.state.id_table import HASH, IdTable, RememberedId, hash_ids


class Deduper:
    """Finds the duplicates among the events of one source.

    An id is remembered until every window that its event has in any of ``layers`` is sealed,
    whether the layer selects the event or not.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        ends = [
            layer.window.ends(layer.window.starts(pl.col("time")))
            + (layer.max_out_of_orderness_ms + layer.allowed_lateness_ms)
            for layer in layers
        ]
        self._until = pl.max_horizontal(ends)

    def find(
        self, events: pl.DataFrame, stream_time_ms: int, ids: IdTable
    ) -> tuple[list[int], pl.DataFrame]:
        """Return the duplicate rows, and the hashes of the others, which are to be remembered.

        The events are classified, of one partition, in log order, with ``.id``, ``time`` and
        ``time_before``, the greatest time before each in the same run. Stream time and ids are
        those before the first of them.
        """
        hashes = hash_ids(events[ID_COLUMN])
        now = pl.max_horizontal("time_before", stream_time_ms)
        rows = events.select(
            hashes["high"], hashes["low"], self._until.alias("until"), now.alias("now"),
            lasts=self._until > now,
        )  # fmt: skip
        found = ids.find(rows)
        repeats: list[int] = []
        if found or rows["high"].n_unique() < rows.height:
            repeats = _repeats(rows, found, ids.ids_max)
            rows = rows.filter(~pl.int_range(pl.len()).is_in(repeats))
        if not rows["lasts"].all():
            rows = rows.filter("lasts")
        return repeats, rows[[*HASH, "until"]]


def _repeats(rows: pl.DataFrame, found: dict[int, RememberedId], ids_max: int) -> list[int]:
    """Return the rows that repeat an id which is remembered just before them."""
    before = pl.col("lasts").cum_sum().cast(pl.Int64) - pl.col("lasts").cast(pl.Int64)
    suspects = rows.with_row_index("number").with_columns(before=before)
    suspects = suspects.filter(pl.col("high").is_duplicated() | pl.col("number").is_in(list(found)))
    repeats = []
    newest: dict[tuple[int, int], RememberedId] = {}
    skipped = 0
    for number, high, low, until, now, lasts, remembered in suspects.iter_rows():
        # Rows continue those of the table: the first id of this batch has row 0.
        row = remembered - skipped
        known = newest.get((high, low)) or found.get(number)
        if known is not None and now < known.until and row - known.row <= ids_max:
            repeats.append(number)
            skipped += lasts
        elif lasts:
            newest[high, low] = RememberedId(until, row)
    return repeats
