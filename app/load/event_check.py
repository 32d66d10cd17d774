"""Event check: events before they are written, decoded by the worker's own decoder.

It reports the events that a worker will refuse and why, those whose type no layer selects, and how
far they are out of order in each partition.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import cast

import msgspec
import polars as pl

from agents.decode.event_batch import INDEX_COLUMN, RECORD_SPAN, EventBatch
from agents.decode.records import Decoder
from agents.fold.classify import Classifier
from agents.fold.layers import KEY_BYTES_MAX
from tables.model.clock import wall_clock_ms
from tables.model.layer import Map, Source
from tables.model.window import SECONDS_IN_MS_MAX
from tables.record.chunk import Run

_EXAMPLE_CHARS_MAX = 200
_TYPES_MAX = 1_000


def _is_long(values: pl.Series) -> pl.Series:
    if values.dtype != pl.String:
        return pl.repeat(value=False, n=len(values), eager=True)
    return (values.str.len_bytes() > KEY_BYTES_MAX).fill_null(value=False)


_KEY_FAULTS = (
    ("missing", pl.Series.is_null, "is null or absent"),
    ("key_too_long", _is_long, f"has more than {KEY_BYTES_MAX:,} bytes"),
)
"""Reasons of the worker for which the keys of layers refuse an event, and the tests of a column."""


@dataclasses.dataclass(slots=True)
class Refusal:
    """Events that are refused for one reason, and the first of them: its number, text and fault.

    The first event has number 1.
    """

    count: int
    number: int
    detail: str
    text: str


class EventCheck:
    """Checks the events of one source, in the order in which they are written.

    Attributes:
        events: how many were checked.
        refused: the refusals by reason.
        unclassified: how many events have each type that no layer selects.
        first_ms: the least event time of those that can be used, None before any; ``last_ms`` the
            greatest.
        disorder_ms: the farthest that an event is behind an earlier one of its partition.
        source: the source.
    """

    def __init__(self, themap: Map, source: Source) -> None:
        self.source = source
        self.events = 0
        self.refused: dict[str, Refusal] = {}
        self.unclassified: collections.Counter[str] = collections.Counter()
        self.first_ms: int | None = None
        self.last_ms: int | None = None
        self.disorder_ms = 0
        self._layers = themap.base_layers(source.name)
        self._classifier = Classifier(self._layers)
        self._decoder = Decoder(msgspec.structs.replace(source, format=None))
        self._newest: dict[int, int] = {}

    @property
    def usable(self) -> int:
        """Events that will be on some layer, unless they are late or filtered."""
        gone = sum(one.count for one in self.refused.values()) + self.unclassified.total()
        return self.events - gone

    @property
    def hint(self) -> str:
        """A sentence about times that are likely of another unit; empty if there are none."""
        if self.last_ms is None or not 0 < self.last_ms < SECONDS_IN_MS_MAX:
            return ""
        unit = "milliseconds" if self.source.time_unit_ms == 1 else "seconds"
        return (
            f"all times are before 1973 if they are {unit}; if they are seconds, set"
            f' time_unit = "s" in the map\'s source {self.source.name}'
        )

    def take(self, events: Sequence[bytes], partitions: Sequence[int]) -> None:
        """Check events; ``partitions`` are those that they go to."""
        if not events:
            return
        now_ms = wall_clock_ms()
        count = len(events)
        run = Run(self.source.topic, 0, 0, count, range(count), [*events], [now_ms] * count, {})
        batch = self._decoder.decode([run])
        for item in batch.aside:
            self._refuse(item.reason, 1, item.record, item.detail, events)
        self._refuse_keys(batch, events)
        self._count_types(batch.frame["type"])
        self._note_times(batch.frame, pl.Series(partitions, dtype=pl.Int32))
        self.events += count

    def _refuse(
        self, reason: str, count: int, index: int, detail: str, events: Sequence[bytes]
    ) -> None:
        known = self.refused.get(reason)
        if known is not None:
            known.count += count
            return
        text = events[index][:_EXAMPLE_CHARS_MAX].decode(errors="replace")
        self.refused[reason] = Refusal(count, self.events + index + 1, detail, text)

    def _refuse_keys(self, batch: EventBatch, events: Sequence[bytes]) -> None:
        """Refuse events whose key field is absent or too long, for a layer that selects them."""
        for reason, is_wrong, fault in _KEY_FAULTS:
            frame = batch.frame
            types = frame["type"].unique().to_list()
            wrong = pl.repeat(value=False, n=frame.height, eager=True)
            detail, first = "", 0
            for index, layer in enumerate(self._layers):
                chosen = [name for name in types if index in self._classifier.layers_of(name)]
                selected = frame["type"].is_in(chosen)
                for field in layer.key:
                    found = selected & is_wrong(frame[field.name])
                    if not detail and found.any():
                        detail = f"key field {field.name} of layer {layer.name} {fault}"
                        first = cast("int", frame[INDEX_COLUMN].filter(found)[0]) // RECORD_SPAN
                    wrong |= found
            if detail:
                self._refuse(reason, int(wrong.sum()), first, detail, events)
                batch.keep(~wrong)

    def _count_types(self, types: pl.Series) -> None:
        for name, count in types.value_counts().iter_rows():
            if not self._classifier.layers_of(name):
                known = name in self.unclassified or len(self.unclassified) < _TYPES_MAX
                self.unclassified[name if known else "..."] += count

    def _note_times(self, frame: pl.DataFrame, partitions: pl.Series) -> None:
        if not frame.height:
            return
        times = frame["time"]
        least, most = cast("int", times.min()), cast("int", times.max())
        self.first_ms = least if self.first_ms is None else min(self.first_ms, least)
        self.last_ms = most if self.last_ms is None else max(self.last_ms, most)
        placed = pl.DataFrame(
            {"partition": partitions.gather(frame[INDEX_COLUMN] // RECORD_SPAN), "at": times}
        )
        for (partition,), own in placed.group_by("partition", maintain_order=True):
            number = cast("int", partition)
            newest = own["at"].cum_max().clip(lower_bound=self._newest.get(number))
            self._newest[number] = cast("int", newest[-1])
            self.disorder_ms = max(self.disorder_ms, cast("int", (newest - own["at"]).max()))


def check_lines(check: EventCheck) -> list[str]:
    """Return the result of a check as lines."""
    counts = f"{check.usable:,} of {check.events:,} are usable"
    lines = [f"checked as events of source {check.source.name}: {counts}", *refusal_lines(check)]
    if check.unclassified:
        lines.append(f"  no layer selects {check.unclassified.total():,}: {type_texts(check)}")
    if check.hint:
        lines.append(f"  hint: {check.hint}")
    return lines


def refusal_lines(check: EventCheck) -> list[str]:
    """Return a line for each reason of a refusal, and one for its example."""
    lines = []
    for reason, one in sorted(check.refused.items(), key=lambda item: -item[1].count):
        lines.append(
            f"  refused as {reason}: {one.count:,}, first event {one.number:,}: {one.detail}"
        )
        lines.append(f"    {one.text}")
    return lines


def type_texts(check: EventCheck, types_max: int = 5) -> str:
    """Return the types that no layer selects and how many events have them, the commonest first."""
    found = [f"{name} ({count:,})" for name, count in check.unclassified.most_common(types_max)]
    more = len(check.unclassified) - len(found)
    return ", ".join([*found, f"{more} more types"] if more else found)
