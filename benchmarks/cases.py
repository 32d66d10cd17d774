"""Cases: the maps and forms of the throughput benchmark, one difference each from the first three.

The job is that of the peers: ten types of event, ten thousand entities of which few are very busy,
windows of five seconds with count, sum, minimum and maximum, one second of allowed lateness; here
with an archive and a coarser layer, so that closed windows are archived and forwarded.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Format = Literal["json", "ndjson", "arrow"]

WINDOW_MS, MINUTE_MS = 5_000, 60_000
ENTITIES = 10_000
MANY_ENTITIES = 1_000_000
EVENTS = 10_000_000
"""A hundred windows of five seconds at the peers' 20,000 events a second of event time."""

_HEAD = """
revision = 1
name = "{name}"
[sources.input]
topic = "{name}.input"
partitions = {partitions}
time = "at"
type = "type"
{id}keyed_by = ["entity"]
[sources.input.fields]
type = "string"
entity = "string"
{region}value = {value}
"""
_VALUES = {
    "flat": '"float"',
    "nested": '{path = "data.value", type = "float"}',
    "array": '{path = "data[0]", type = "float"}',
}
_BASE = """
[layers.{name}]
source = "input"
events = ["**"]
key = [{key}]
window = "{window_ms}ms"
max_out_of_orderness = "200ms"
allowed_lateness = "1s"
measures = ["count", "sum(value)", "min(value)", "max(value)"]
"""
_MINUTES = """
[layers.minutes]
from = "five_seconds"
key = ["type"]
window = "1m"
partitions = 2
"""


@dataclasses.dataclass(frozen=True, slots=True)
class BenchmarkLayer:
    """A layer of a case, from which truth and map are made."""

    name: str
    key: tuple[str, ...]
    window_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One way to write the same events, and one map to read them with.

    ``entities`` are skewed if they are :data:`ENTITIES`, else uniform. ``base_layers`` count the
    layers on the source; there is always one coarser layer more. With ``ids`` the source has an id.
    ``value`` says where in an event of JSON its number stands.
    """

    name: str
    format: Format = "json"
    events: int = EVENTS
    partitions: int = 8
    entities: int = ENTITIES
    base_layers: int = 1
    archive: Literal["embedded", "cassandra"] = "embedded"
    ids: bool = False
    value: Literal["flat", "nested", "array"] = "flat"

    @property
    def per_record(self) -> int:
        """Events in one record."""
        return {"json": 1, "ndjson": 500, "arrow": 2_000}[self.format]

    @property
    def title(self) -> str:
        """The name in tables."""
        return f"{self.name}, ids" if self.ids else self.name

    def layers(self) -> list[BenchmarkLayer]:
        """Return the layers on the source, then the coarser one.

        Each further one has another key or window; all hold the entity, so the worker that
        folds them has the complete cells.
        """
        keys = [("type", "entity"), ("entity",), ("region", "entity"), ("type", "region", "entity")]
        sizes = [2, 3, 6, 12, 1]
        found = [BenchmarkLayer("five_seconds", keys[0], WINDOW_MS)]
        for number in range(1, self.base_layers):
            size = sizes[(number - 1) // len(keys) % len(sizes)]
            key = keys[(number - 1) % len(keys)]
            found.append(BenchmarkLayer(f"layer_{number}", key, size * WINDOW_MS))
        return [*found, BenchmarkLayer("minutes", ("type",), MINUTE_MS)]

    def map_text(self, name: str) -> str:
        """Return the map file; ``name`` is also in the names of its topics."""
        *bases, _ = self.layers()
        has_region = any("region" in layer.key for layer in bases)
        text = _HEAD.format(
            name=name,
            partitions=self.partitions,
            id='id = "id"\n' if self.ids else "",
            region='region = "string"\n' if has_region else "",
            value=_VALUES[self.value],
        )
        for layer in bases:
            key = ", ".join(f'"{field}"' for field in layer.key)
            text += _BASE.format(name=layer.name, key=key, window_ms=layer.window_ms)
        return text + _MINUTES


_FORMATS: tuple[Format, ...] = ("json", "ndjson", "arrow")
CASES = {
    case.name: case
    for case in (
        *(Case(form, form) for form in _FORMATS),
        Case("json-1-partition", partitions=1),
        Case("json-64-partitions", partitions=64),
        Case("json-nested", value="nested"),
        Case("json-array", value="array"),
        Case("json-million-keys", entities=MANY_ENTITIES),
        Case("arrow-million-keys", "arrow", entities=MANY_ENTITIES),
        Case("json-2-layers", base_layers=2),
        Case("json-5-layers", base_layers=5),
        Case("json-20-layers", base_layers=20),
        Case("arrow-5-layers", "arrow", base_layers=5),
        Case("arrow-20-layers", "arrow", base_layers=20),
        Case("json-cassandra", archive="cassandra"),
        Case("arrow-cassandra", "arrow", archive="cassandra"),
    )
}
