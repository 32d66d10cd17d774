"""Gather: a layer topic's records into what they add to the coarser layer. Pure.

Contributions replace each other by version; floors are the least over all senders, taken before
each record (docs/formats/journal.md rule 12).
"""

from __future__ import annotations

import dataclasses

import msgspec
import polars as pl

from agents.batch import DETAIL_CHARS_MAX, SetAside
from agents.fold import Content
from tables.chunk import Run
from tables.contribution import Contribution, decode_cells, decode_contribution
from tables.journal import Announcement
from tables.plan import InputPlan
from tables.state import PartitionState
from tables.table import NEVER_MS, RollupTable


@dataclasses.dataclass(slots=True)
class _Gathering:
    """What is known while a run's records are taken one by one."""

    announced: dict[int, Announcement]
    frames: list[pl.DataFrame]
    counts: dict[str, int]
    aside: list[SetAside]

    def count(self, name: str, rows: int = 1) -> None:
        if rows:
            self.counts[name] = self.counts.get(name, 0) + rows


class Gatherer:
    """Gathers the runs of one layer topic for its coarser layer."""

    def __init__(self, plan: InputPlan) -> None:
        assert plan.finer is not None
        self._plan = plan
        self._finer = plan.finer
        self._layer = plan.layers[0]

    def gather(self, run: Run, state: PartitionState) -> tuple[Content, list[SetAside]]:
        """Return what ``run`` adds to ``state``, and the records to set aside."""
        gaps = run.next_offset - run.first_offset - len(run.values)
        doing = _Gathering(dict(state.meta.announced), [], {"records.gap": gaps}, [])
        for index, value in enumerate(run.values):
            found = self._decode(index, value, doing)
            if found is not None:
                self._take(*found, doing)
        table = state.tables[self._layer.name]
        assert isinstance(table, RollupTable)
        applied = self._newer(table, doing)
        content = Content(
            start=run.first_offset,
            stop=run.next_offset,
            stream_time_ms=NEVER_MS,
            ledger=doing.counts,
            blocks={self._layer.name: applied} if applied.height else {},
            announced=doing.announced,
        )
        return content, doing.aside

    def _decode(
        self, index: int, value: bytes | None, doing: _Gathering
    ) -> tuple[Contribution, pl.DataFrame | None] | None:
        if not value:
            doing.count("records.empty")
            return None
        rows = None
        try:
            contribution = decode_contribution(value)
            cause = self._foreign(contribution)
            if contribution.block and not cause:
                rows = decode_cells(contribution, self._finer, self._layer)
        except msgspec.DecodeError as error:
            cause = str(error)
        if cause:
            doing.count("records.unreadable")
            doing.count("unreadable.contribution")
            detail = cause[:DETAIL_CHARS_MAX]
            doing.aside.append(SetAside("dead", 0, index, None, "contribution", detail))
            return None
        doing.count("records.heartbeat" if rows is None else "records.with_events")
        return contribution, rows

    def _foreign(self, contribution: Contribution) -> str:
        """Return why a contribution is not one of the finer layer's, or an empty string."""
        if contribution.layer != self._finer.name:
            return f"it is of layer {contribution.layer}, not {self._finer.name}"
        if not 0 <= contribution.sender < self._plan.senders:
            return f"sender {contribution.sender} does not exist"
        return ""

    def _take(
        self, contribution: Contribution, rows: pl.DataFrame | None, doing: _Gathering
    ) -> None:
        """Drop what is final already, keep the rest in order, then hear the announcement."""
        announced = doing.announced
        own_closed, own_floor = announced.get(contribution.sender, (NEVER_MS, NEVER_MS))
        if rows is not None:
            everyone = len(announced) == self._plan.senders
            floor = min(f for _, f in announced.values()) if everyone else NEVER_MS
            name = self._layer.name
            doing.count("events.decoded", rows.height)
            doing.count("events.classified", rows.height)
            doing.count(f"layer.{name}.selected", rows.height)
            ends = self._layer.window.ends(pl.col("window_start"))
            live = rows.filter(ends > floor)
            doing.count(f"layer.{name}.too_late", rows.height - live.height)
            single = live.filter(self._finer.window.ends(pl.col("fine_start")) > own_floor)
            doing.count(f"layer.{name}.repeated", live.height - single.height)
            doing.frames.append(single)
        closed, floor = contribution.announced
        announced[contribution.sender] = (max(own_closed, closed), max(own_floor, floor))

    def _newer(self, table: RollupTable, doing: _Gathering) -> pl.DataFrame:
        """Return the rows that replace a smaller version, the last of each contribution only."""
        columns = table.delta_columns
        frames = [frame for frame in doing.frames if frame.height]
        if not frames:
            return pl.DataFrame(schema=dict.fromkeys(columns, pl.Null()))
        rows = pl.concat(frames)
        known = table.known(rows["window_start"].unique())
        rows = rows.join(known, on=table.contribution, how="left", maintain_order="left")
        before = pl.col("contributed").cum_max().shift(1).over(table.contribution)
        seen = pl.max_horizontal(pl.col("known"), before)
        newer = rows.filter(seen.is_null() | (pl.col("contributed") > seen))
        name = self._layer.name
        doing.count(f"layer.{name}.repeated", rows.height - newer.height)
        doing.count(f"layer.{name}.folded", newer.height)
        return newer.unique(table.contribution, keep="last", maintain_order=True).select(columns)
