"""The events of one step, as columns: keys by Zipf's law, times a little out of order, values.

Two frames have a row an event, in the order in which each partition gets them:

    facts    partition, time (ms), type_id, key_id, origin: the input of the truth
    events   the declared fields, time, type and id; ``EventShape`` names and nests them

Events of one ``origin`` are the same event, sent again with the same id.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import polars as pl

from app.load.plan import LoadSpec, Part, Step
from app.load.vocabulary import SIDE_VALUES_MAX, Words, key_values
from tables.model.layer import Field
from tables.model.window import TIME_MS_MIN

# A number of 64 bits is cut into three of this size: one random number serves three columns.
_THIRD = 1 << 20
_THIRDS = 3
_NULLS_FROM = _THIRD - _THIRD // 64
"""A measured field is null if its number is at or above this: of one event in 64."""

_HALF = 1 << 32
_BACK_MAX = 50
"""The most events of its step that lie between an event and its repeat."""


@dataclasses.dataclass(slots=True)
class StepEvents:
    """The events of a step; ``bad`` are the rows that bad input replaces, in order."""

    facts: pl.DataFrame
    events: pl.DataFrame
    bad: list[int]


class EventMaker:
    """Makes the events of one process; the same seed, part and steps give the same events."""

    def __init__(self, words: Words, plan: LoadSpec, part: Part) -> None:
        self._words = words
        self._plan = plan
        self._part = part
        self._chance = random.Random(f"{plan.seed}/{part.number}/events")  # noqa: S311  # repeatable
        self._made = 0
        by_key = words.partitions
        own = [k for k in range(words.keys) if by_key is None or by_key[k] in part.partitions]
        self._own_keys = pl.Series(own, dtype=pl.UInt32)
        total = sum(words.weights[key] for key in own)
        self._cumulative = pl.Series([words.weights[key] / total for key in own]).cum_sum()
        targets = [by_key[key] for key in own] if by_key else list(part.partitions)
        self._targets = pl.Series(targets, dtype=pl.Int32)
        self._types = pl.Series([*words.types], dtype=pl.String)
        self._key_columns = {f.name: key_values(f, words.keys) for f in words.keyed}
        sides = min(words.keys, SIDE_VALUES_MAX)
        self._side_columns = {f.name: key_values(f, sides) for f in words.sides}
        layers = words.layers
        self._disorder_ms = min((x.max_out_of_orderness_ms for x in layers), default=0)

    def make(self, step: Step) -> StepEvents:
        """Return the events of ``step``, sorted by partition, otherwise in the order of time."""
        count = step.events
        facts = self._facts(step, count)
        marks = self._numbers(count)
        bad = (marks % _HALF < int(self._plan.bad * _HALF)).arg_true().to_list()
        late = (marks // _HALF < int(self._plan.late * _HALF)).arg_true().to_list()
        facts = self._aged(facts, late)
        events = self._events(facts)
        origin = self._origins(facts["partition"])
        facts, events = facts[origin], events[origin]
        return StepEvents(facts.with_columns(origin=origin), events, bad)

    def _facts(self, step: Step, count: int) -> pl.DataFrame:
        ranks = self._cumulative.search_sorted(self._numbers(count) / 2.0**64)
        # The last cumulative weight may be a little less than 1.
        own = ranks.clip(0, len(self._own_keys) - 1)
        first, second, third = self._cut(self._numbers(count))
        targets = own if self._words.partitions is not None else third % len(self._targets)
        first_ms = self._plan.time_ms(step.begin_s)
        span_ms = self._plan.time_ms(step.end_s) - first_ms
        even = pl.int_range(count, eager=True) * span_ms // max(count, 1) + first_ms
        # Most are nearly in order and a few are not: the cube of a uniform number.
        disorder = ((second / _THIRD) ** 3 * (self._disorder_ms + 1)).cast(pl.Int64)
        unit = self._words.source.time_unit_ms
        facts = pl.DataFrame(
            {
                "partition": self._targets.gather(targets),
                "time": (even - disorder) // unit * unit,
                "type_id": (first % len(self._words.types)).cast(pl.UInt32),
                "key_id": self._own_keys.gather(own),
            }
        )
        return facts.sort("partition", maintain_order=True)

    def _origins(self, partitions: pl.Series) -> pl.Series:
        """Return, for each row, the row that it is made of: its own, or one to repeat."""
        count = len(partitions)
        own = pl.int_range(count, dtype=pl.UInt32, eager=True)
        if not self._plan.duplicates:
            return own
        numbers = self._numbers(count)
        repeats = numbers % _HALF < int(self._plan.duplicates * _HALF)
        back = (numbers // _HALF % _BACK_MAX + 1).cast(pl.Int64)
        earlier = (own.cast(pl.Int64) - back).clip(0).cast(pl.UInt32)
        # An event repeats one of its own partition, or else is itself.
        repeats &= partitions.gather(earlier) == partitions
        return earlier.zip_with(repeats, own)

    def _aged(self, facts: pl.DataFrame, late: list[int]) -> pl.DataFrame:
        """Make the events of these rows older: late in some layer, or too late in it."""
        if not late or not self._words.layers:
            return facts
        unit = self._words.source.time_unit_ms
        times = facts["time"].gather(late).to_list()
        aged = [max(time - self._age_ms(), TIME_MS_MIN) // unit * unit for time in times]
        return facts.with_columns(time=facts["time"].scatter(late, aged))

    def _age_ms(self) -> int:
        """Return an age that is late for a layer, or one that is too late for it, evenly."""
        chance = self._chance
        layer = chance.choice(self._words.layers)
        age_ms = layer.max_out_of_orderness_ms
        if chance.random() < 0.5:  # noqa: PLR2004  # half of them
            return age_ms + int(chance.random() * layer.allowed_lateness_ms)
        window_ms = layer.window.longest_ms
        age_ms += layer.allowed_lateness_ms + window_ms
        return age_ms + int(chance.random() * window_ms)

    def _events(self, facts: pl.DataFrame) -> pl.DataFrame:
        words, source, count = self._words, self._words.source, facts.height
        shape = words.shape
        columns = {
            shape.time: facts["time"] // source.time_unit_ms,
            shape.type: self._types.gather(facts["type_id"]),
        }
        for name, values in self._key_columns.items():
            columns[name] = values.gather(facts["key_id"])
        numbers: list[pl.Series] = []
        for field in (*words.sides, *words.measured):
            numbers = numbers or list(self._cut(self._numbers(count)))
            number = numbers.pop()
            side = self._side_columns.get(field.name)
            columns[field.name] = (
                _measured(field, number) if side is None else side.gather(number % len(side))
            )
        if shape.id is not None:
            columns[shape.id] = self._ids(count, columns.get(shape.id))
        return pl.DataFrame(columns)

    def _ids(self, count: int, declared: pl.Series | None) -> pl.Series:
        """Return an id for each event, unique over the load: a text, or a number if declared so."""
        processes = 1 << 10
        first = self._made
        self._made += count
        ids = pl.int_range(first, first + count, eager=True) * processes + self._part.number
        number = declared is not None and declared.dtype == pl.Int64
        return ids if number else ids.cast(pl.String)

    def _numbers(self, count: int) -> pl.Series:
        """Return uniform random numbers of 64 bits."""
        data = pl.Series([self._chance.randbytes(8 * count)])
        shape = pl.Array(pl.UInt64, count)
        return data.bin.reinterpret(dtype=shape, endianness="little").explode()

    @staticmethod
    def _cut(numbers: pl.Series) -> tuple[pl.Series, pl.Series, pl.Series]:
        """Return three uniform numbers below 2^20 for each number."""
        return (numbers % _THIRD, numbers // _THIRD % _THIRD, numbers // (_THIRD * _THIRD) % _THIRD)


_MEASURED: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    # Below zero too, so that filters and minima see both.
    "int": lambda number: (number % 1_000).cast(pl.Int64) - 100,
    "float": lambda number: (number % 100_000).cast(pl.Float64) / 100,
    "bool": lambda number: number % 2 == 0,
    "string": lambda number: pl.lit("v") + (number % 32).cast(pl.String),
}


def _measured(field: Field, number: pl.Series) -> pl.Series:
    """Return the values of a field that is in no key, nulls among them."""
    value = _MEASURED[field.type](pl.col("number"))
    kept = value if field.required else pl.when(pl.col("number") < _NULLS_FROM).then(value)
    return pl.DataFrame({"number": number}).select(kept.alias(field.name)).to_series()
