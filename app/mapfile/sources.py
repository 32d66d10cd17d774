"""The sources of a map file, with their checks."""

from __future__ import annotations

import dataclasses
from typing import cast, get_args

from app.mapfile.measures import undeclared
from app.mapfile.section import Section, nearest, shown, topic_problem
from tables.model.layer import FUTURE_SKEW_MS, IDS_MAX, Field, FieldType, Source

PARTITIONS_MAX = 10_000
"""More than any source needs at a worker a core; a number above it is a slip of the keyboard."""

MIB = 1 << 20
RECORD_BYTES_MAX_MAX = 12 * MIB
"""A dead letter holds a whole record, and its topic takes 16 MiB."""

INFLATED_FACTOR = 16
"""How far Arrow may inflate by default; the benchmarks' events in LZ4 inflate 2.6 times."""

INFLATED_BYTES_MAX_MAX = 1024 * MIB

IDS_MAX_MIN, IDS_MAX_MAX = 1_000, 100_000_000
"""Bounds of the number of ids that a partition remembers; a hundred million take 5 GB."""

_TIME_UNITS_MS = {"ms": 1, "s": 1_000}
_FRAME_COLUMNS = frozenset(
    ("partition", "record", "row", "time", "time_before", "type", "window_start")
)
"""Columns that a frame of events has beside the declared fields."""


@dataclasses.dataclass(frozen=True, slots=True)
class DraftSource:
    """A source as far as it could be read.

    ``fields`` holds every declared field, those of a bad type as None, so that a layer that names
    one is not told that it is unknown. Each of ``keyed_by``, ``topic``, ``partitions`` and
    ``built`` is None if it is wrong.
    """

    name: str
    fields: dict[str, FieldType | None]
    keyed_by: tuple[str, ...] | None
    topic: str | None
    partitions: int | None
    built: Source | None


def read_sources(section: Section) -> dict[str, DraftSource]:
    """Return the sources of the map's ``sources`` tables by name; problems are noted."""
    return {name: _read(name, table) for name, table in section.sections("sources").items()}


def _read(name: str, section: Section) -> DraftSource:
    topic = _read_topic(section)
    partitions = section.integer("partitions", 1, PARTITIONS_MAX, required=True)
    time_field = section.text("time", required=True)
    type_field = section.text("type", required=True)
    id_field, ids_max = _read_id(section)
    unit = section.choice("time_unit", tuple(_TIME_UNITS_MS))
    future_skew_ms = section.duration_ms("future_skew", FUTURE_SKEW_MS)
    idle_heartbeat_ms = section.duration_ms("idle_heartbeat")
    record_bytes_max = section.integer("record_bytes_max", 1, RECORD_BYTES_MAX_MAX) or MIB
    inflated_bytes_max = section.integer("inflated_bytes_max", 1, INFLATED_BYTES_MAX_MAX)
    unclassified = section.choice("unclassified", ("dead", "count"))
    fields = _read_fields(section, time_field, type_field, id_field)
    keyed_by = _read_keyed_by(name, section, fields)
    section.finish()
    _note_same_field(section, time_field, type_field, id_field)
    built = None
    if topic is not None and partitions is not None and time_field and type_field:
        built = Source(
            name=name,
            topic=topic,
            partitions=partitions,
            time_field=time_field,
            type_field=type_field,
            # Sorted, because the order of a TOML table means nothing.
            fields=tuple(Field(one, kind) for one, kind in sorted(fields.items()) if kind),
            keyed_by=keyed_by or (),
            id_field=id_field,
            time_unit_ms=_TIME_UNITS_MS[unit],
            future_skew_ms=future_skew_ms,
            record_bytes_max=record_bytes_max,
            inflated_bytes_max=inflated_bytes_max or INFLATED_FACTOR * record_bytes_max,
            unclassified="count" if unclassified == "count" else "dead",
            idle_heartbeat_ms=idle_heartbeat_ms,
            ids_max=ids_max,
        )
    return DraftSource(name, fields, keyed_by, topic, partitions, built)


def _read_topic(section: Section) -> str | None:
    topic = section.text("topic", required=True)
    problem = topic_problem(topic) if topic is not None else None
    if problem is not None:
        section.note("topic", problem)
        return None
    return topic


def _read_id(section: Section) -> tuple[str | None, int]:
    """Return the id's field, None if events have none, and how many ids are remembered."""
    id_field = section.text("id")
    ids_max = section.integer("ids_max", IDS_MAX_MIN, IDS_MAX_MAX)
    if id_field is None and ids_max is not None:
        section.note("ids_max", "the source has no id; name its JSON field or leave this out")
    return id_field, ids_max or IDS_MAX


def _read_keyed_by(
    name: str, section: Section, fields: dict[str, FieldType | None]
) -> tuple[str, ...] | None:
    """Return the fields that producers key by: none if left out, None if wrong."""
    if section.raw("keyed_by") in (None, []):
        return ()
    keyed_by = section.texts("keyed_by")
    unknown = [field for field in keyed_by or () if field not in fields]
    for field in unknown:
        section.note("keyed_by", undeclared(field, fields, name))
    return None if unknown else keyed_by


def _read_fields(
    section: Section, time_field: str | None, type_field: str | None, id_field: str | None
) -> dict[str, FieldType | None]:
    fields: dict[str, FieldType | None] = {}
    for name, kind in section.names("fields").items():
        known = kind in get_args(FieldType)
        fields[name] = cast("FieldType", kind) if known else None
        if not known:
            what = nearest(kind, get_args(FieldType)) if isinstance(kind, str) else "change it"
            section.note(f"fields.{name}", f"unknown type; got {shown(kind)}; {what}")
        elif name == time_field and kind != "int":
            section.note(f"fields.{name}", f"the time field; got {kind!r}; want 'int'; change it")
        elif name == type_field and kind != "string":
            section.note(
                f"fields.{name}", f"the type field; got {kind!r}; want 'string'; change it"
            )
        own = {"time": time_field, "type": type_field}.get(name) == name
        if (name in _FRAME_COLUMNS and not own) or name.startswith("key_"):
            section.note(
                f"fields.{name}",
                f"{name!r} is a column that every batch of events has or may have; rename the "
                "field in the events",
            )
    if id_field is not None and fields.get(id_field) in ("bool", "float"):
        section.note(
            f"fields.{id_field}",
            f"the id field; got {fields[id_field]!r}; want 'string' or 'int'; change it",
        )
    return fields


def _note_same_field(
    section: Section, time_field: str | None, type_field: str | None, id_field: str | None
) -> None:
    """Note a JSON field that is declared as two of time, type and id."""
    seen: dict[str, str] = {}
    for role, field in (("time", time_field), ("type", type_field), ("id", id_field)):
        if field is None:
            continue
        if field in seen:
            section.note(role, f"{field!r} is the {seen[field]} field too; name another JSON field")
        seen[field] = role
