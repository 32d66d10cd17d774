"""The sources of a map file, with their checks."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any, cast, get_args

from app.mapfile.formats import read_format, unreadable_paths
from app.mapfile.measures import undeclared
from app.mapfile.section import Section, nearest, shown, topic_problem
from tables.model.layer import FUTURE_SKEW_MS, IDS_MAX, Field, FieldType, Source
from tables.model.path import Path, path_text

PARTITIONS_MAX = 10_000
"""More than any source needs at a worker a core; a number above it is a slip of the keyboard."""

MIB = 1 << 20
RECORD_BYTES_MAX_MAX = 12 * MIB
"""A dead letter holds a whole record, and its topic accepts 16 MiB."""

INFLATED_FACTOR = 16
"""The default bound of Arrow's inflation; the benchmarks' events in LZ4 inflate 2.6 times."""

INFLATED_BYTES_MAX_MAX = 1024 * MIB

IDS_MAX_MIN, IDS_MAX_MAX = 1_000, 100_000_000
"""Bounds of the number of ids that a partition remembers; a hundred million need 5 GB."""

_TIME_UNITS_MS = {"ms": 1, "s": 1_000}
_OFFSET = re.compile(r"[+-](?:[01][0-9]|2[0-3]):[0-5][0-9]")
_FRAME_COLUMNS = frozenset(
    ("partition", "record", "row", "time", "time_before", "type", "window_start")
)
"""Columns that a frame of events has beside the declared fields."""


@dataclasses.dataclass(frozen=True, slots=True)
class DraftSource:
    """A source as far as it could be read.

    ``fields`` holds every declared field, those of a bad type as None, so that a layer that names
    one does not get the problem that it is unknown. Each of ``keyed_by``, ``topic``,
    ``partitions`` and ``built`` is None if it is wrong.
    """

    name: str
    fields: dict[str, FieldType | None]
    keyed_by: tuple[str, ...] | None
    topic: str | None
    partitions: int | None
    built: Source | None


def read_sources(section: Section, folder: pathlib.Path) -> dict[str, DraftSource]:
    """Return the sources of the map's ``sources`` tables by name; problems are noted.

    Paths of other files begin at ``folder``.
    """
    tables = section.sections("sources").items()
    return {name: _read(name, table, folder) for name, table in tables}


def _read(name: str, section: Section, folder: pathlib.Path) -> DraftSource:
    topic = _read_topic(section)
    partitions = section.integer("partitions", 1, PARTITIONS_MAX, required=True)
    time, time_options = _read_time(section)
    kind = _read_role(section, "type", required=True)
    identity, ids_max = _read_id(section)
    roles = {"time": time, "type": kind, "id": identity}
    unit = section.choice("time_unit", tuple(_TIME_UNITS_MS))
    future_skew_ms = section.duration_ms("future_skew", FUTURE_SKEW_MS)
    idle_heartbeat_ms = section.duration_ms("idle_heartbeat")
    record_bytes_max = section.integer("record_bytes_max", 1, RECORD_BYTES_MAX_MAX) or MIB
    inflated_bytes_max = section.integer("inflated_bytes_max", 1, INFLATED_BYTES_MAX_MAX)
    unclassified = section.choice("unclassified", ("dead", "count"))
    arrays = section.flag("arrays")
    compression = section.choice("compression", ("none", "gzip"))
    fields = _read_fields(section, roles)
    form = read_format(section, folder)
    types = {name: field.type if field else None for name, field in fields.items()}
    keyed_by = _read_keyed_by(name, section, types)
    section.finish()
    _note_paths(section, roles, fields)
    if form is not None:
        if compression == "gzip" and form.name == "avro" and not form.schema:
            section.note(
                "compression",
                "the frames of a schema registry cannot be in gzip, because their ids are read"
                " first; leave one of the two out",
            )
        declared = {f"fields.{name}": field.at for name, field in fields.items() if field}
        for reader, fault in unreadable_paths(form, roles | declared):
            section.note(reader, fault)
    built = None
    if topic is not None and partitions is not None and time and kind:
        built = Source(
            name=name,
            topic=topic,
            partitions=partitions,
            time_field=_name(time),
            type_field=_name(kind),
            # Sorted, because the order of a TOML table means nothing.
            fields=tuple(field for _, field in sorted(fields.items()) if field),
            keyed_by=keyed_by or (),
            id_field=_name(identity) if identity else None,
            time_unit_ms=_TIME_UNITS_MS[unit],
            future_skew_ms=future_skew_ms,
            record_bytes_max=record_bytes_max,
            inflated_bytes_max=inflated_bytes_max or INFLATED_FACTOR * record_bytes_max,
            unclassified="count" if unclassified == "count" else "dead",
            idle_heartbeat_ms=idle_heartbeat_ms,
            ids_max=ids_max,
            time_path=_nested(time),
            type_path=_nested(kind),
            id_path=_nested(identity or ()),
            format=form,
            time_text=time_options.text,
            time_fraction=time_options.fraction,
            time_offset=time_options.offset,
            arrays=arrays,
            compression="gzip" if compression == "gzip" else "",
        )
    return DraftSource(name, types, keyed_by, topic, partitions, built)


def _name(path: Path) -> str:
    """Return the name of a field of the top level, the text of a path of any other."""
    return path_text(path) if len(path) > 1 else str(path[0])


def _nested(path: Path) -> Path:
    """Return a path that goes into objects; the only step of another one is a name."""
    return path if len(path) > 1 else ()


def _read_topic(section: Section) -> str | None:
    topic = section.text("topic", required=True)
    problem = topic_problem(topic) if topic is not None else None
    if problem is not None:
        section.note("topic", problem)
        return None
    return topic


def _read_id(section: Section) -> tuple[Path | None, int]:
    """Return the id's path, None if events have none, and how many ids are remembered."""
    path = _read_role(section, "id")
    ids_max = section.integer("ids_max", IDS_MAX_MIN, IDS_MAX_MAX)
    if path is None and ids_max is not None:
        section.note("ids_max", "the source has no id; name its field or leave this out")
    return path, ids_max or IDS_MAX


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


@dataclasses.dataclass(frozen=True, slots=True)
class _TimeOptions:
    """The times that a source takes beside integers and RFC 3339 texts with offset."""

    text: bool = False
    fraction: bool = False
    offset: str = ""


def _read_time(section: Section) -> tuple[Path | None, _TimeOptions]:
    """Return the path of the time, and the options of its table."""
    table = section.raw("time")
    if not isinstance(table, dict):
        return _read_role(section, "time", required=True), _TimeOptions()
    inner = section.inside("time", table)
    path = inner.path("path", required=True)
    inner.refuse("unit", 'the unit of numbers is the source\'s: time_unit = "s"; move it there')
    options = _TimeOptions(inner.flag("text"), inner.flag("fraction"), _read_zone(inner))
    inner.finish()
    return path, options


def _read_zone(section: Section) -> str:
    """Return the offset of texts without one as RFC 3339 has it, empty if there is no zone."""
    zone = section.text("zone")
    if zone is None or _OFFSET.fullmatch(zone):
        return zone or ""
    if zone == "UTC":
        return "Z"
    section.note(
        "zone",
        f"not a zone of one offset; got {zone!r}; want 'UTC' or an offset such as '+01:00'; in"
        " zones with daylight saving an hour of each year comes twice, so have producers of such"
        " times write the offset",
    )
    return ""


def _read_role(section: Section, role: str, *, required: bool = False) -> Path | None:
    """Return the path of the time, type or id: ``role = NAME``, or ``role = {path = PATH}``."""
    table = section.raw(role)
    if not isinstance(table, dict):
        name = section.text(role, required=required)
        return None if name is None else (name,)
    inner = section.inside(role, table)
    path = inner.path("path", required=True)
    inner.finish()
    return path


def _read_fields(section: Section, roles: Mapping[str, Path | None]) -> dict[str, Field | None]:
    """Return the declared fields, those that are wrong as None."""
    fields: dict[str, Field | None] = {}
    for name, declared in section.names("fields").items():
        entry = f"fields.{name}"
        path: Path | None = (name,)
        kind, required, options = declared, False, dict[str, Any]()
        if isinstance(declared, dict):
            inner = section.inside(entry, declared)
            kind = inner.text("type", required=True)
            path = inner.path("path") if inner.has("path") else path
            required = inner.flag("required")
            options = _read_options(inner, kind, required=required)
            inner.finish()
        if not isinstance(declared, dict) or kind is not None:
            _note_type(section, entry, kind)
        fields[name] = None
        if kind in get_args(FieldType) and path is not None:
            own = () if path == (name,) else path
            field = Field(name, cast("FieldType", kind), own, required, **options)
            _note_role(section, entry, field, roles)
            fields[name] = field
        is_own = name in ("time", "type") and roles[name] == path
        if (name in _FRAME_COLUMNS and not is_own) or name.startswith("key_"):
            section.note(
                entry,
                f"{name!r} is a column that every batch of events has or may have; rename the field"
                f" in the map: event_{name} = {{path = {name!r}, type = ...}}",
            )
    return fields


_OPTIONS = {
    "text": (("int", "float", "bool"), "a string is a text already"),
    "whole": (("int",), "a float has 12.0 as it is"),
    "digits": (("string",), "a number has 42 as it is"),
}
"""The types of fields that have an option, and why others have no use for it, by option."""


def _read_options(section: Section, kind: object, *, required: bool) -> dict[str, Any]:
    """Return the conversions that a field declares."""
    options: dict[str, Any] = {}
    for option, (types, why) in _OPTIONS.items():
        options[option] = section.flag(option)
        if options[option] and kind in get_args(FieldType) and kind not in types:
            want = " or ".join(map(repr, types))
            section.note(option, f"of no use; got type {kind!r}; want {want}; {why}; remove it")
    # A digest leaves out a flag that is not set; of another text it knows only the same object.
    options["null_on_error"] = section.choice("on_error", ("event", "null")) == "null"
    if required and options["null_on_error"]:
        section.note("on_error", "a required value cannot become null; remove one of them")
    return options


def _note_type(section: Section, entry: str, kind: object) -> None:
    if kind not in get_args(FieldType):
        remedy = nearest(kind, get_args(FieldType)) if isinstance(kind, str) else "change it"
        section.note(entry, f"unknown type; got {shown(kind)}; {remedy}")


_ROLE_TYPES = {"time": ("int",), "type": ("string",), "id": ("string", "int")}
_OWN = {
    "time": "write those of the time into its table: time = {path = ..., text = true}",
    "type": "the type is a text; remove them",
    "id": "an id is a text or a whole number, and both are the same id; remove them",
}


def _note_role(
    section: Section, entry: str, field: Field, roles: Mapping[str, Path | None]
) -> None:
    """Note a declared field that is the source's time, type or id too, and of another type."""
    for role, path in roles.items():
        wanted = _ROLE_TYPES[role]
        if field.at == path and field.type not in wanted:
            want = " or ".join(map(repr, wanted))
            section.note(entry, f"the {role} field; got {field.type!r}; want {want}; change it")
        if field.at == path and field.converts:
            section.note(entry, f"the {role} field, which has no options of a field; {_OWN[role]}")


def _note_paths(
    section: Section, roles: Mapping[str, Path | None], fields: Mapping[str, Field | None]
) -> None:
    """Note two paths to one value, and a path that leads into the value of another one."""
    seen: dict[Path, str] = {}
    for role, path in roles.items():
        if path is None:
            continue
        if path in seen:
            section.note(
                role,
                f"{path_text(path)!r} is the {seen[path]} field too; name another field",
            )
        seen[path] = role
    own: dict[Path, str] = {}
    for name, field in sorted(fields.items()):
        if field is None:
            continue
        if field.at in own:
            section.note(
                f"fields.{name}",
                f"reads {path_text(field.at)!r} as fields.{own[field.at]} does; remove one of them",
            )
        own[field.at] = name
    readers = {path: f"fields.{name}" for path, name in own.items()} | seen
    for path, reader in readers.items():
        for steps in range(1, len(path)):
            if (outer := readers.get(path[:steps])) is not None:
                section.note(
                    reader,
                    f"goes into {path_text(path[:steps])!r}, which {outer} reads as a value; it"
                    " cannot be both; change one of them",
                )
