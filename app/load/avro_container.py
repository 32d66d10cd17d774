"""Avro containers of frames: object container files, uncompressed, that say their own schema."""

from __future__ import annotations

import importlib.util
import io
import re
from typing import Any

import polars as pl

from agents.decode.avro_schema import AvroError, fastavro_module
from tables.model.layer import Source

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BLOCK_BYTES = 1 << 16
_SYNC = bytes.fromhex("5ff4b1c2a98d43e0b6709d21c8e37a14")
"""Ends blocks: always the same, so that a load of one seed is the same bytes."""


def has_avro_names(source: Source) -> bool:
    """Return whether events of a source can be written as containers, and the package is there.

    Names of Avro have letters of ASCII, digits and underscores. A source that declares the schema
    of its events has no containers.
    """
    names = {step for path in source.paths for step in path}
    return (
        all(isinstance(name, str) and _NAME.fullmatch(name) for name in names)
        and (source.format is None or not source.format.schema)
        and importlib.util.find_spec("fastavro") is not None
    )


def avro_container(frame: pl.DataFrame) -> bytes:
    """Return a frame as a container with an event for each row.

    Raises:
        AvroError: a column has a name or a type that Avro has not, or the package is missing.
    """
    fastavro = fastavro_module()
    fields = [_field(name, kind, name) for name, kind in frame.schema.items()]
    file = io.BytesIO()
    try:
        schema = fastavro.parse_schema({"type": "record", "name": "Event", "fields": fields})
        fastavro.writer(
            file, schema, frame.iter_rows(named=True), sync_interval=_BLOCK_BYTES, sync_marker=_SYNC
        )
    except (ValueError, TypeError, fastavro.schema.SchemaParseException) as error:
        raise AvroError(f"cannot write Avro: {error}") from error
    return file.getvalue()


def _field(name: str, kind: pl.DataType, place: str) -> dict[str, Any]:
    return {"name": name, "type": ["null", _type(kind, place)]}


def _type(kind: pl.DataType, place: str) -> Any:
    """Return the type of a column; ``place`` makes the names of records distinct."""
    if isinstance(kind, pl.Struct):
        fields = [_field(one.name, one.dtype, f"{place}_{one.name}") for one in kind.fields]  # type: ignore[arg-type]
        return {"type": "record", "name": f"R_{place}", "fields": fields}
    if isinstance(kind, pl.List | pl.Array):
        return {"type": "array", "items": ["null", _type(kind.inner, f"{place}_")]}  # type: ignore[arg-type]
    if kind.is_integer():
        return "long"
    if kind.is_float():
        return "double"
    if kind == pl.Boolean:
        return "boolean"
    if kind in (pl.String, pl.Null):
        return "string"
    raise AvroError(f"cannot write Avro: {place} has values of type {kind}; want JSON's types")
