"""Gather: a layer topic's records into the content they add to the coarser layer. Pure.

Contributions replace each other by version; floors are the least over all senders, taken before
each record (docs/formats/journal.md rule 12). For a layer of hours, five records of one sender,
about one key and minute 10:07, make one row, that of version 55::

    version 40, sum 5     folded
    version 55, sum 9     folded; it replaces the value before
    version 55, sum 9     repeated
    no cells, floor 10:08 a heartbeat: the minute of this sender is settled now
    version 40, sum 5     repeated, because the minute is settled
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

import polars as pl

from agents.decode.event_batch import DETAIL_CHARS_MAX, SMALL_VALUES_MAX, SetAside
from agents.fold.content import Content
from tables.model.ledger import LedgerDelta
from tables.model.window import NEVER_MS
from tables.record.chunk import Run
from tables.record.sealed import DamagedError
from tables.state.cell import later_of
from tables.state.contribution import Contribution, cause_against, decode_cells, decode_contribution
from tables.state.input_plan import InputPlan
from tables.state.journal import NOTHING_ANNOUNCED, Announcement
from tables.state.partition_state import PartitionState
from tables.state.rollup_table import RollupTable


@dataclasses.dataclass(slots=True, frozen=True)
class _Record:
    """A record of the run: its cells, and the floors that apply to them once they are known."""

    index: int
    contribution: Contribution
    rows: pl.DataFrame | None
    floor: int = NEVER_MS
    own_floor: int = NEVER_MS


@dataclasses.dataclass(slots=True)
class _GatherResult:
    """The result of gathering a run so far: its ledger delta, and the records set aside."""

    ledger: LedgerDelta = dataclasses.field(default_factory=LedgerDelta)
    aside: list[SetAside] = dataclasses.field(default_factory=list)

    def refuse(self, index: int, cause: str) -> None:
        self.ledger.add_records("unreadable", reason="contribution")
        detail = cause[:DETAIL_CHARS_MAX]
        self.aside.append(SetAside("dead", 0, index, None, "contribution", detail))


class Gatherer:
    """Gathers the runs of one layer topic for its coarser layer."""

    def __init__(self, plan: InputPlan) -> None:
        assert plan.finer is not None
        self._plan = plan
        self._finer = plan.finer
        self._layer = plan.layers[0]

    def gather(
        self, run: Run, state: PartitionState, refused: str = ""
    ) -> tuple[Content, list[SetAside]]:
        """Return the content that ``run`` adds to ``state``, and the records to set aside.

        ``refused`` says why all records of the run are refused, if they are.
        """
        result = _GatherResult()
        result.ledger.add_records("gap", run.next_offset - run.first_offset - len(run.values))
        announced = dict(state.meta.announced)
        records = self._decode(run, result, refused)
        with_cells = self._announce(records, announced)
        table = state.tables[self._layer.name]
        assert isinstance(table, RollupTable)
        rows = self._live(with_cells, result)
        newer = None if rows is None else self._newer(rows, table, result)
        content = Content(
            start=run.first_offset,
            stop=run.next_offset,
            stream_time_ms=NEVER_MS,
            ledger=result.ledger.counts,
            blocks={} if newer is None or not newer.height else {self._layer.name: newer},
            announced=announced,
            whole=_whole_of(records, state.meta.whole),
        )
        return content, result.aside

    def _decode(self, run: Run, result: _GatherResult, refused: str) -> list[_Record]:
        """Return the records that can be used."""
        records = []
        for index, value in enumerate(run.values):
            if index in run.faults:
                result.refuse(index, run.faults[index].detail)
                continue
            if not value:
                result.ledger.add_records("empty")
                continue
            if refused:
                result.refuse(index, refused)
                continue
            rows = None
            try:
                contribution = decode_contribution(value)
                cause = self._foreign(contribution)
                if contribution.block and not cause:
                    rows = decode_cells(contribution, self._layer)
            except DamagedError as error:
                cause = str(error)
            if cause:
                result.refuse(index, cause)
            else:
                records.append(_Record(index, contribution, rows))
        frames = [record.rows for record in records if record.rows is not None]
        if frames and cause_against(pl.concat(frames), self._layer):
            records = [record for record in records if self._is_usable(record, result)]
            result.aside.sort(key=lambda item: item.record)
        cells = [record.rows.height for record in records if record.rows is not None]
        result.ledger.add_decoded(len(cells), sum(cells))
        result.ledger.add_records("heartbeat", len(records) - len(cells))
        return records

    def _is_usable(self, record: _Record, result: _GatherResult) -> bool:
        cause = "" if record.rows is None else cause_against(record.rows, self._layer)
        if cause:
            result.refuse(record.index, cause)
        return not cause

    def _foreign(self, contribution: Contribution) -> str:
        """Return why a contribution is not of the finer layer; an empty string if it is."""
        if contribution.layer != self._finer.name:
            return f"it is of layer {contribution.layer}, not {self._finer.name}"
        if not 0 <= contribution.sender < self._plan.senders:
            return f"sender {contribution.sender} does not exist"
        return ""

    def _announce(
        self, records: list[_Record], announced: dict[int, Announcement]
    ) -> list[_Record]:
        """Apply announcements in order; return the records with cells, each with its floors."""
        found = []
        for record in records:
            sender = record.contribution.sender
            if record.rows is not None:
                floor, own_floor = self._floors(announced, sender)
                found.append(dataclasses.replace(record, floor=floor, own_floor=own_floor))
            own = announced.get(sender, NOTHING_ANNOUNCED)
            announced[sender] = Announcement(*map(max, own, record.contribution.announced))
        return found

    def _floors(self, announced: dict[int, Announcement], sender: int) -> tuple[int, int]:
        """Return the layer's floor, which needs all senders, and that of one sender."""
        everyone = len(announced) == self._plan.senders
        floor = min(one.final_ms for one in announced.values()) if everyone else NEVER_MS
        return floor, announced.get(sender, NOTHING_ANNOUNCED).final_ms

    def _live(self, records: list[_Record], result: _GatherResult) -> pl.DataFrame | None:
        """Return the cells that are not final yet, in order; None if there are no cells."""
        frames = [record.rows for record in records if record.rows is not None]
        if not frames:
            return None
        name = self._layer.name
        heights = [frame.height for frame in frames]

        def column(values: list[int], kind: type[pl.DataType]) -> pl.Series:
            pairs = zip(values, heights, strict=True)
            return pl.concat(pl.Series([v], dtype=kind).new_from_index(0, n) for v, n in pairs)

        rows = pl.concat(frames)
        starts = self._layer.window.starts(rows["fine_start"])
        senders = column([r.contribution.sender for r in records], pl.Int32)
        rows = rows.hstack([senders.alias("source_partition"), starts.alias("window_start")])
        result.ledger.add_events("classified", rows.height)
        result.ledger.add_layer(name, "selected", rows.height)
        oldest = cast("int", rows["fine_start"].min())
        if (
            self._finer.window.end(oldest) > max(r.own_floor for r in records)
            and self._layer.window.end(self._layer.window.start(oldest))
            > max(r.floor for r in records)
        ):  # fmt: skip
            return rows
        live = self._layer.window.ends(starts) > column([r.floor for r in records], pl.Int64)
        own = column([r.own_floor for r in records], pl.Int64)
        single = live & (self._finer.window.ends(rows["fine_start"]) > own)
        result.ledger.add_layer(name, "too_late", rows.height - int(live.sum()))
        result.ledger.add_layer(name, "repeated", int(live.sum()) - int(single.sum()))
        return rows if single.all() else rows.filter(single)

    def _newer(self, rows: pl.DataFrame, table: RollupTable, result: _GatherResult) -> pl.DataFrame:
        """Return the rows that replace a smaller version, only the last of each contribution."""
        name = self._layer.name
        identity = table.contribution
        if not table.may_know(rows) and _all_differ(rows, identity):
            result.ledger.add_layer(name, "folded", rows.height)
            return pl.DataFrame([rows[name] for name in table.delta_columns])
        newest = rows.unique(identity, keep="last", maintain_order=True)
        known = table.known(rows["window_start"])
        newer = rows
        if known.height or newest.height < rows.height:
            before = pl.col("contributed").cum_max().shift(1).over(identity)
            if not known.height:
                seen = rows.select(before).to_series()
            else:
                rows = rows.join(known, on=identity, how="left", maintain_order="left")
                seen = rows.select(pl.max_horizontal("known", before)).to_series()
            newer = rows.filter((seen.is_null()) | (rows["contributed"] > seen))
            newest = newer.unique(identity, keep="last", maintain_order=True)
        result.ledger.add_layer(name, "repeated", rows.height - newer.height)
        result.ledger.add_layer(name, "folded", newer.height)
        return newest.select(table.delta_columns)


def _whole_of(
    records: list[_Record], known: Mapping[int, Mapping[str, int]]
) -> dict[int, dict[str, int]]:
    """Return the times from which on senders' cells are whole, for senders that send other ones."""
    found: dict[int, dict[str, int]] = {}
    for record in records:
        sender, sent = record.contribution.sender, record.contribution.whole
        before = found.get(sender, known.get(sender))
        if sent is None or sent == before:
            continue
        whole = later_of(before or {}, sent)
        if whole != before:
            found[sender] = whole
    return found


def _all_differ(rows: pl.DataFrame, columns: list[str]) -> bool:
    if rows.height <= SMALL_VALUES_MAX:
        values = zip(*(rows[name].to_list() for name in columns), strict=True)
        return len(set(values)) == rows.height
    return not rows.select(columns).is_duplicated().any()
