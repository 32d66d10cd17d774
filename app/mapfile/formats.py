"""The format that a source of a map file declares, with its checks."""

from __future__ import annotations

import base64
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping

from agents.decode.avro_schema import AvroError, AvroSchema
from agents.decode.protobuf_message import ProtobufError, ProtobufMessage
from app.mapfile.section import Section, nearest, shown
from tables.model.layer import RecordForm
from tables.model.path import Path, path_text

NAMES = ("csv", "avro", "protobuf")
FILE_BYTES_MAX = 4 << 20
_DELIMITERS = (",", ";", "\t", "|")


def read_format(section: Section, folder: pathlib.Path) -> RecordForm | None:
    """Return the format: ``format = NAME``, or ``format = {name = NAME, ...}`` with options.

    None if the source has none, or a wrong one, which is noted. Paths of files begin at ``folder``.
    """
    table = section.raw("format")
    if isinstance(table, dict):
        noting, field, options = section.inside("format", table), "name", table
    else:
        noting, field, options = section, "format", {}
    name = noting.text(field, required=noting is not section)
    if name is not None and name not in NAMES:
        noting.note(field, f"unknown format; got {shown(name)}; {nearest(name, NAMES)}")
        return None
    inner = noting if noting is not section else section.inside("format", options)
    form = _READ[name](inner, folder) if name is not None else None
    if noting is not section:
        noting.finish()
    return form


def _csv(section: Section, _: pathlib.Path) -> RecordForm:
    columns = section.texts("columns") or ()
    return RecordForm("csv", columns, section.choice("delimiter", _DELIMITERS))


def _avro(section: Section, folder: pathlib.Path) -> RecordForm | None:
    if not section.has("schema"):
        return RecordForm("avro")
    data = _file(section, "schema", folder)
    if data is None:
        return None
    try:
        AvroSchema(data)
    except AvroError as error:
        section.note("schema", f"{error}; want an Avro schema as JSON; correct it")
        return None
    return RecordForm("avro", schema=json.dumps(json.loads(data)))


def _protobuf(section: Section, folder: pathlib.Path) -> RecordForm | None:
    data = _file(section, "descriptor", folder, required=True)
    message = section.text("message", required=True)
    framed = section.flag("framed")
    if data is None or message is None:
        return None
    descriptor = base64.b64encode(data).decode()
    try:
        ProtobufMessage(descriptor, message)
    except ProtobufError as error:
        section.note("descriptor", f"{error}; correct it")
        return None
    return RecordForm("protobuf", descriptor=descriptor, message=message, framed=framed)


def _file(
    section: Section, field: str, folder: pathlib.Path, *, required: bool = False
) -> bytes | None:
    """Return the bytes of the file that a field names."""
    name = section.text(field, required=required)
    if name is None:
        return None
    try:
        with (folder / name).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        section.note(field, f"cannot read {folder / name}: {error.strerror}; give another file")
        return None
    if len(data) > FILE_BYTES_MAX:
        section.note(field, f"cannot read {folder / name}: more than {FILE_BYTES_MAX} bytes")
        return None
    return data


_READ: dict[str, Callable[[Section, pathlib.Path], RecordForm | None]] = {
    "csv": _csv, "avro": _avro, "protobuf": _protobuf,
}  # fmt: skip


def unreadable_paths(
    form: RecordForm, readers: Mapping[str, Path | None]
) -> Iterator[tuple[str, str]]:
    """Yield each reader of a path that no record of a format can have, and the fault in words.

    Args:
        form: the format.
        readers: by field of the map file, the path that it reads.
    """
    for reader, path in readers.items():
        if path is None or form.name != "csv":
            continue
        if len(path) > 1:
            yield (
                reader,
                (
                    f"reads {path_text(path)!r}, but values of CSV lie in no other values; name a"
                    " column"
                ),
            )
        elif form.columns and path[0] not in form.columns:
            yield (
                reader,
                (
                    f"reads {path[0]!r}, which is not one of the format's columns;"
                    f" {nearest(str(path[0]), form.columns)}"
                ),
            )
