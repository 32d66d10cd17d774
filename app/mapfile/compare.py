"""Two maps compared: each change in words, and the changes that workers and ``map apply`` refuse.

The rules are those about revisions in docs/formats/map.md and of docs/formats/journal.md (rules 3
and 15); the refusals of shapes are the claims' own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import msgspec

from agents.partition.claims import OTHER_PARTITIONS
from app.mapfile.load import digest_of
from tables.archive.cassandra.cql import CassandraTable
from tables.measures.registry import accumulators_of
from tables.model.layer import Field, Layer, Map, Measure, RecordForm, SideKind, Source
from tables.model.path import path_text
from tables.model.shape import reshaped, shapes_of
from tables.model.window import Window

LATER_EVENTS = "holds for events that are read after the change; earlier cells stay as they are"
WHOLE = "whole in windows that start after a worker first used the new map"

_SOURCE = {
    "time_field": LATER_EVENTS,
    "type_field": LATER_EVENTS,
    "time_unit_ms": LATER_EVENTS,
    "format": LATER_EVENTS,
    "time_text": LATER_EVENTS,
    "time_fraction": LATER_EVENTS,
    "time_offset": LATER_EVENTS,
    "arrays": LATER_EVENTS,
    "compression": LATER_EVENTS,
    "id_field": "ids are remembered from the change on; without an id all are forgotten",
    "ids_max": "holds from the change on; it brings no forgotten id back",
    "keyed_by": "decides which layers are merged; producers have to keep it from the change on",
    "future_skew_ms": LATER_EVENTS,
    "record_bytes_max": LATER_EVENTS,
    "inflated_bytes_max": LATER_EVENTS,
    "unclassified": LATER_EVENTS,
    "idle_heartbeat_ms": "holds as soon as a worker with the new map owns a partition",
}
_WORDS = {"time_text": "time.text", "time_fraction": "time.fraction", "time_offset": "time.zone"}
_VALUES: dict[str, dict[object, str]] = {
    "time_unit_ms": {1: "ms", 1_000: "s"},
    "time_offset": {"Z": "UTC"},
}
_LAYER = {
    "events": LATER_EVENTS,
    "where": LATER_EVENTS,
    "max_out_of_orderness_ms": "holds from the change on; sealed windows stay sealed",
    "allowed_lateness_ms": "holds from the change on; sealed windows stay sealed",
    "archive_ttl_ms": (
        "answers leave older rows out at once, and the embedded archive deletes them; in Cassandra"
        " earlier rows keep the lifetime that they were written with"
    ),
}


@dataclasses.dataclass(slots=True)
class Comparison:
    """The differences of two maps: lines by part of the map, and refusals.

    A line begins with ``+`` for a new thing, ``-`` for one that ends, ``~`` for a change. The
    change may be applied if ``refused`` is empty.
    """

    title: str
    parts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    refused: list[str] = dataclasses.field(default_factory=list)
    is_equal: bool = False

    def add(self, part: str, lines: Iterator[str]) -> None:
        """Add the lines of a part, if there are any."""
        if found := list(lines):
            self.parts.setdefault(part, []).extend(found)


def compare(old: Map, new: Map) -> Comparison:
    """Return the differences of a map in use and its next revision."""
    found = Comparison(f"map {old.name}: revision {old.revision} -> {new.revision}")
    if old.name != new.name:
        found.title = f"map {old.name} and map {new.name}"
        found.refused.append(
            f"map {new.name} is another one: it has topics, journals and tables of its own, and"
            f" nothing of map {old.name} continues in it; give it the name {old.name}"
        )
        return found
    if old.digest == new.digest:
        found.is_equal = True
        return found
    if digest_of(msgspec.structs.replace(new, revision=old.revision)) == old.digest:
        found.parts["map"] = ["~ nothing but the revision differs: state and rows stay"]
    if new.revision <= old.revision:
        found.refused.append(
            f"the map in use is revision {old.revision}; got {new.revision}; want"
            f" {old.revision + 1} or more; raise it with every change, also to go back"
        )
    for name in _both(old.sources, new.sources):
        found.add(f"source {name}", _source(old, new, name))
    for name in _both(old.layers, new.layers):
        found.add(f"layer {name}", _layer(old, new, name))
    found.add("topics", _topics(old, new))
    found.add("tables", _tables(old, new))
    found.refused += reshaped(shapes_of(old), shapes_of(new))
    found.refused += _refused(old, new)
    return found


def _both(
    old: tuple[Source, ...] | tuple[Layer, ...], new: tuple[Source, ...] | tuple[Layer, ...]
) -> list[str]:
    return list(dict.fromkeys(part.name for part in (*old, *new)))


def _named(parts: tuple[Source, ...] | tuple[Layer, ...], name: str) -> bool:
    return any(part.name == name for part in parts)


def _source(old: Map, new: Map, name: str) -> Iterator[str]:
    if not _named(new.sources, name):
        topic = old.source(name).topic
        yield (
            f"- ends: {topic} is read no more; its journal keeps the position, from which a later"
            " map resumes that reads the topic again"
        )
        return
    source = new.source(name)
    if not _named(old.sources, name):
        is_known = source.topic in old.inputs()
        yield (
            f"+ begins: {source.topic} is read from"
            f" {'the position that its journal has' if is_known else 'the first record it has'}"
        )
        return
    before = old.source(name)
    yield from _fields_changed(before, source, _SOURCE)
    was = {field.name: field for field in before.fields}
    now = {field.name: field for field in source.fields}
    for field in dict.fromkeys([*was, *now]):
        if field not in now:
            yield f"- field {field} is read no more"
        elif field not in was:
            yield f"+ field {field} ({_field(now[field])}): read from events after the change"
        elif was[field] != now[field]:
            yield f"~ field {field}: {_field(was[field])} -> {_field(now[field])}: {LATER_EVENTS}"


def _layer(old: Map, new: Map, name: str) -> Iterator[str]:
    if not _named(new.layers, name):
        yield (
            "- ends: its cells leave the state, answers have it no more, its topics and its table"
            " stay as they are; only the same layer may come back under this name; it begins anew"
        )
        return
    layer = new.layer(name)
    if not _named(old.layers, name):
        topics = {source.topic for source in old.sources}
        base = _base(new, layer)
        is_new = base.source is not None and new.source(base.source).topic not in topics
        yield (
            f"+ begins: {'it has all events of its new source' if is_new else WHOLE}; no earlier"
            " layer of another kind may have had its name"
        )
        return
    before = old.layer(name)
    yield from _fields_changed(before, layer, _LAYER)
    yield from _measures(before, layer)
    yield from _feed(before, layer)


def _measures(before: Layer, layer: Layer) -> Iterator[str]:
    stored = {acc.column for acc in before.accumulators}
    types = {acc.field: acc.type for acc in layer.accumulators if acc.field is not None}
    for measure in layer.measures:
        if measure in before.measures:
            continue
        needed = {acc.column for acc in accumulators_of([measure], dict(types))}
        if needed <= stored:
            yield f"+ measure {_measure(measure)}: of columns that cells have, as whole as they are"
        else:
            yield f"+ measure {_measure(measure)}: null in earlier windows, {WHOLE}"
    for measure in before.measures:
        if measure not in layer.measures:
            yield (
                f"- measure {_measure(measure)}: left out of answers; rows keep it; if it comes"
                " back it begins anew"
            )


def _feed(before: Layer, layer: Layer) -> Iterator[str]:
    if before.publish == layer.publish:
        return
    if layer.publish is None:
        yield "- feed: it ends; its topic stays"
    elif before.publish is None:
        yield f"+ feed ({layer.publish}): of the cells that close from the change on"
    else:
        yield (
            f"~ feed: {before.publish} -> {layer.publish}: of later records in the same topic,"
            " which must not be compacted if they are Arrow"
        )


def _topics(old: Map, new: Map) -> Iterator[str]:
    was, now = _topics_of(old), _topics_of(new)
    for topic, partitions in now.items():
        if topic not in was:
            count = f"{partitions} partition{'s' if partitions > 1 else ''}"
            yield f"+ {topic} ({count}): made by `map apply` if it is missing"
    for topic in was:
        if topic not in now:
            yield f"- {topic}: stays, with its records; nothing is added any more"


def _tables(old: Map, new: Map) -> Iterator[str]:
    for name in _both(old.layers, new.layers):
        if not _named(new.layers, name):
            yield f"- {_table(old, name)}: stays, with its rows"
            continue
        layer = new.layer(name)
        if not _named(old.layers, name):
            yield f"+ {_table(new, name)}: made by `map apply`"
            continue
        have = {acc.column for acc in old.layer(name).accumulators}
        if more := [acc.column for acc in layer.accumulators if acc.column not in have]:
            yield f"~ {_table(new, name)}: gets {', '.join(more)}; null in the rows that it has"


def _refused(old: Map, new: Map) -> Iterator[str]:
    """Yield the refusals that do not follow from shapes."""
    was = {source.topic: source.partitions for source in old.sources}
    for source in new.sources:
        if (before := was.get(source.topic, source.partitions)) != source.partitions:
            yield (
                f"source {source.name}: {source.topic} had {before} partitions, now"
                f" {source.partitions}; {OTHER_PARTITIONS}"
            )
    if old.side_partitions != new.side_partitions:
        kinds: tuple[SideKind, ...] = ("late", "dead")
        topics = " and ".join(new.side_topic(kind) for kind in kinds)
        remedy = (
            f"raise theirs with kafka-topics --alter --partitions {new.side_partitions} first"
            if new.side_partitions > old.side_partitions
            else f"a topic never gets fewer: keep a source of {old.side_partitions}"
        )
        yield (
            f"topics {topics} have as many partitions as the widest source: got"
            f" {new.side_partitions}; want {old.side_partitions}; {remedy}"
        )
    for layer in new.layers:
        if _named(old.layers, layer.name) and old.layer(layer.name).slots != layer.slots:
            yield (
                f"the slots of layer {layer.name} were {old.layer(layer.name).slots}, now"
                f" {layer.slots}: its table in Cassandra is refused, because its rows lie by them;"
                " give the layer a new name (the embedded archive accepts the change)"
            )


def _topics_of(themap: Map) -> dict[str, int]:
    inputs = themap.inputs()
    journals = {themap.journal_topic(topic): count for topic, count in inputs.items()}
    published = [layer for layer in themap.layers if layer.publish]
    feeds = {themap.feed_topic(layer): layer.partitions for layer in published}
    return inputs | journals | feeds


def _table(themap: Map, name: str) -> str:
    return CassandraTable(themap, themap.layer(name), keyspace="").name


def _base(themap: Map, layer: Layer) -> Layer:
    while layer.finer is not None:
        layer = themap.layer(layer.finer)
    return layer


def _fields_changed(
    before: Source | Layer, now: Source | Layer, meanings: dict[str, str]
) -> Iterator[str]:
    """Yield a line for each field of a source or layer that differs and has a meaning here."""
    for name, meaning in meanings.items():
        was, is_now = getattr(before, name), getattr(now, name)
        paths = f"{name.removesuffix('_field')}_path"
        if was != is_now or getattr(before, paths, None) != getattr(now, paths, None):
            word = _WORDS.get(name, name.removesuffix("_ms").removesuffix("_field"))
            yield f"~ {word}: {_value(name, was)} -> {_value(name, is_now)}: {meaning}"


def _value(name: str, value: object) -> str:
    if value is None or value in ((), ""):
        return "none"
    if name in _VALUES:
        return _VALUES[name].get(value, str(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("_ms") and isinstance(value, int):
        return str(Window(value)) if value else "0s"
    if name == "where" or isinstance(value, RecordForm):
        return msgspec.json.encode(value).decode()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _field(field: Field) -> str:
    at = f" at {path_text(field.path)}" if field.path else ""
    options = [name for name in ("required", "text", "whole", "digits") if getattr(field, name)]
    options += ["null on error"] if field.null_on_error else []
    return ", ".join([f"{field.type}{at}", *options])


def _measure(measure: Measure) -> str:
    return measure.kind if measure.field is None else f"{measure.kind}({measure.field})"
