"""Fold of a few events: the same as decode and fold, in plain Python, for chunks of plain events.

A frame has a fixed cost: for the fifty events of a quiet moment it is ten times the cost of the
events. This path takes only chunks of plain JSON events that are in time and that some layer
selects. All other chunks (with lines, Arrow, heartbeats, and events that are broken, late, in the
future or unclassified) take the general path, which alone decides about these.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from agents.decode.event_batch import SMALL_EVENTS_MAX
from agents.decode.json_events import UNREADABLE, JsonEvents, are_utf8
from agents.fold.classify import Classifier
from agents.fold.content import Before, Content
from agents.fold.layers import KEY_BYTES_MAX, OPERATORS, floor_before
from tables.measures.registry import kind_of
from tables.model.layer import Condition, Layer, Source
from tables.model.ledger import LedgerDelta
from tables.record.chunk import Run
from tables.state.block import TupleRows
from tables.state.cell import cell_schema
from tables.state.input_plan import InputPlan

_KEY_CHARS_MAX = KEY_BYTES_MAX // 4

Getter = Callable[[Any], Any]


class SmallBatchFolder:
    """Folds chunks of a few plain events of one source into its base layers."""

    def __init__(self, source: Source, plan: InputPlan) -> None:
        self._json = JsonEvents(source)
        self._skew_ms = source.future_skew_ms
        self._record_bytes_max = source.record_bytes_max
        self._layers = [_SmallLayer(layer, self._json) for layer in plan.layers]
        self._classifier = Classifier(plan.layers)
        # Ids are searched many at once; a scaled time is not the value of its field, wrong values
        # that become null are counted in frames, and records of a declared format are not JSON.
        is_plain = source.time_unit_ms == 1 and not source.nullable and source.format is None
        self._usable = source.id_field is None and is_plain

    @property
    def classifier(self) -> Classifier:
        """The classifier of its layers."""
        return self._classifier

    def fold(self, runs: Sequence[Run], before: Mapping[int, Before]) -> list[Content] | None:
        """Return one content per run, or None if the chunk must take the general path."""
        if not self._usable or sum(len(run.values) for run in runs) > SMALL_EVENTS_MAX:
            return None
        contents = []
        for run in runs:
            content = self._fold(run, before[run.partition])
            if content is None:
                return None
            contents.append(content)
        return contents

    def _fold(self, run: Run, before: Before) -> Content | None:
        events = self._plain_events(run)
        if events is None:
            return None
        times = list(map(self._json.time_of, events))
        if any(type(time) is not int for time in times):
            return None
        oldest, newest = min(times), max(times)
        members = self._members(events)
        if members is None or newest > min(run.append_times_ms) + self._skew_ms:
            return None
        count = len(events)
        ledger = LedgerDelta()
        ledger.add_decoded(count, count)
        ledger.add_events("classified", count)
        ledger.add_records("gap", run.next_offset - run.first_offset - count)
        stream_time_ms = max(before.stream_time_ms, newest)
        content = Content(run.first_offset, run.next_offset, stream_time_ms, ledger.counts, {})
        for layer, mine in zip(self._layers, members, strict=True):
            if not mine:
                continue
            late = layer.may_be_late(oldest, newest, before)
            rows = None if late else layer.cells(mine, ledger)
            if rows is None:
                return None
            if rows:
                content.blocks[layer.name] = TupleRows(layer.schema, rows)
        return content

    def _plain_events(self, run: Run) -> list[Any] | None:
        """Return one event per record, None if a record is anything else."""
        if run.headers or run.faults or not run.values or None in run.values:
            return None
        values = cast("list[bytes]", run.values)
        if max(map(len, values)) > self._record_bytes_max or not are_utf8(values):
            return None
        try:
            return self._json.decode_all(values)
        except UNREADABLE:
            return None

    def _members(self, events: list[Any]) -> list[list[Any]] | None:
        """Return the events of each layer, None if no layer selects one of them."""
        types = list(map(self._json.type_of, events))
        layers_of = {name: self._classifier.layers_of(name) for name in dict.fromkeys(types)}
        if not all(layers_of.values()):
            return None
        everywhere = set.intersection(*map(set, layers_of.values()))
        return [
            events
            if index in everywhere
            else [e for e, name in zip(events, types, strict=True) if index in layers_of[name]]
            for index in range(len(self._layers))
        ]


class _SmallLayer:
    """Folds a few events into the cells of one layer."""

    def __init__(self, layer: Layer, json: JsonEvents) -> None:
        self._layer = layer
        self.name = layer.name
        self.schema = {name: t for name, t in cell_schema(layer).items() if name != "version"}
        self._slack_ms = layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
        self._key = [json.getter(field.name) for field in layer.key]
        self._where = [_predicate(condition, json) for condition in layer.where]
        groups = itertools.groupby(layer.accumulators, operator.attrgetter("field", "type"))
        self._measured = [
            (
                None if field is None else json.getter(field),
                number,
                [kind_of(accumulator).fold_values for accumulator in stored],
            )
            for (field, number), stored in groups
        ]

    def may_be_late(self, oldest_ms: int, newest_ms: int, before: Before) -> bool:
        """Return whether an event may be too late: never False if one is."""
        floor = max(floor_before(self._layer, before), newest_ms - self._slack_ms)
        window = self._layer.window
        return window.end(window.start(oldest_ms)) <= floor

    def cells(self, events: list[Any], ledger: LedgerDelta) -> list[tuple[Any, ...]] | None:
        """Return the partial cells in order of first appearance, None if a key is malformed."""
        # An event without a key is malformed even if the condition rejects it, so keys come first.
        keys = self._keys(events)
        if keys is None:
            return None
        ledger.add_layer(self.name, "selected", len(events))
        groups: dict[tuple[Any, ...], list[Any]] = {}
        folded = 0
        for key, event in zip(keys, events, strict=True):
            if all(holds(event) for holds in self._where):
                groups.setdefault(key, []).append(event)
                folded += 1
        ledger.add_layer(self.name, "filtered", len(events) - folded)
        ledger.add_layer(self.name, "folded", folded)
        return [(*key, *self._measures(mine)) for key, mine in groups.items()]

    def _keys(self, events: list[Any]) -> list[tuple[Any, ...]] | None:
        """Return key and window start of each event, None if a key field is null or long."""
        start = self._layer.window.start
        columns = [list(map(get, events)) for get in self._key]
        for column in columns:
            for value in set(column):
                if value is None or (type(value) is str and len(value) > _KEY_CHARS_MAX):
                    return None
        starts = {time: start(time) for time in {event.time_ for event in events}}
        return list(zip(*columns, [starts[event.time_] for event in events], strict=True))

    def _measures(self, events: list[Any]) -> Iterator[Any]:
        for get, number, folds in self._measured:
            values = events
            if get is not None:
                values = [value for value in map(get, events) if value is not None]
            if number == "float":
                # There is one zero, so that the least of equal ones is the same in any order.
                values = [value + 0.0 for value in values]
            for fold in folds:
                yield fold(values)


def _predicate(condition: Condition, json: JsonEvents) -> Getter:
    """Return a predicate: whether an event fulfils a condition; null never does."""
    get, value = json.getter(condition.field), condition.value
    if isinstance(value, tuple):
        return lambda event: get(event) in value
    compare = OPERATORS[condition.op]
    return lambda event: (found := get(event)) is not None and bool(compare(found, value))
