"""Avro recomputed: the values of events, as the plain rules of ``records.py`` take them.

fastavro reads the bytes, as it does for the worker; schemas, frames, containers, logical types and
bounds are read by rules of this module.
"""

from __future__ import annotations

import dataclasses
import fractions
import io
import json
import math
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from app.verify.checks import NOT_FINITE
from app.verify.errors import VerifyError
from tables.model.layer import Source
from tables.model.path import Path
from treasure_map.extras import install

SchemaOf = Callable[[int], str | None]
"""Returns the text of a schema of the registry, None if the registry has none of this id."""

_TIMES = {
    "timestamp-millis": fractions.Fraction(1), "local-timestamp-millis": fractions.Fraction(1),
    "timestamp-micros": fractions.Fraction(1, 1_000),
    "local-timestamp-micros": fractions.Fraction(1, 1_000),
    "timestamp-nanos": fractions.Fraction(1, 1_000_000),
    "local-timestamp-nanos": fractions.Fraction(1, 1_000_000),
    "date": fractions.Fraction(86_400_000),
}  # fmt: skip
_SCALE_MAX = 10_000
_DECIMAL_BYTES_MAX = 5_000
_BROKEN = Exception
"""fastavro has no error of its own: it raises those of lists, files and texts."""


class NotAvroError(Exception):
    """Bytes, or a schema, that events cannot be read from."""


@dataclasses.dataclass(frozen=True, slots=True)
class Millis:
    """A time in milliseconds, whatever the unit of the source, and its number as it is written."""

    time_ms: int
    number: int


class AvroRows:
    """Reads the Avro records of one source; ``schema_of`` asks the registry."""

    def __init__(self, source: Source, schema_of: SchemaOf | None = None) -> None:
        self._source = source
        self._schema_of = schema_of
        self._known: dict[Any, _Schema | None] = {}
        kinds = kinds_of(source)
        self._kinds = {path: kinds.get(path, "") for path in source.paths}
        self._kinds[source.time_at] = "time"

    def __call__(self, value: bytes) -> list[dict[str, Any]] | None:
        """Return the values of a record's events; None if it cannot be read."""
        try:
            return [self._plain(found) for found in self._read(value)]
        except NotAvroError:
            return None

    def _read(self, value: bytes) -> Iterator[Any]:
        form = self._source.format
        if form is not None and form.schema:
            yield self._schema(form.schema).whole(value)
        elif value.startswith(b"Obj\x01"):
            yield from self._container(io.BytesIO(value[4:]))
        elif value[:1] == b"\0" and len(value) > 4 and form is not None and form.name == "avro":  # noqa: PLR2004
            yield self._of_id(int.from_bytes(value[1:5], "big")).whole(value[5:])
        else:
            raise NotAvroError

    def _of_id(self, number: int) -> _Schema:
        if self._schema_of is None:
            raise VerifyError(
                f"cannot read source {self._source.name}: its records name schemas of a registry;"
                " got none; want that of the workers; set schema_registry_url"
            )
        if number not in self._known:
            text = self._schema_of(number)
            self._known[number] = None if text is None else self._made(text)
        return _there(self._known[number])

    def _schema(self, text: str | bytes) -> _Schema:
        if text not in self._known:
            self._known[text] = self._made(text)
        return _there(self._known[text])

    def _made(self, text: str | bytes) -> _Schema | None:
        try:
            return _Schema(text)
        except NotAvroError:
            return None

    def _container(self, file: io.BytesIO) -> Iterator[Any]:
        """Yield the values of an object container, behind whose first bytes a file stands."""
        meta = self._schema('{"type": "map", "values": "bytes"}').read(file)
        if meta.get("avro.codec", b"null") != b"null":
            raise NotAvroError
        schema, mark = self._schema(meta.get("avro.schema", b"")), file.read(16)
        number = self._schema('"long"')
        while rest := len(file.getbuffer()) - file.tell():
            count, size = number.read(file), number.read(file)
            data = file.read(size) if 0 <= size <= rest else b""
            if not 0 <= count * 2 <= len(data) == size or file.read(16) != mark:
                raise NotAvroError
            block = io.BytesIO(data)
            for _ in range(count):
                yield schema.read(block)
            if block.tell() != size:
                raise NotAvroError

    def _plain(self, found: Any) -> dict[str, Any]:
        """Return an event's values, those that the map reads as JSON would have them."""
        if not isinstance(found, dict):
            return {}
        for path, kind in self._kinds.items():
            *outer, last = path
            inner = found
            for step in outer:
                inner = _step(inner, step)
            value = _step(inner, last)
            plain = _plain(value, kind)
            if plain is not value:
                inner[last] = plain
        return found


class _Schema:
    """A schema that fastavro reads by, with the logical types of this module."""

    def __init__(self, text: str | bytes) -> None:
        try:
            import fastavro  # noqa: PLC0415 - only records of Avro need it
            from fastavro.read import LOGICAL_READERS  # noqa: PLC0415
        except ImportError as error:
            raise VerifyError(f"cannot read Avro: {error}; {install('avro')}") from error
        LOGICAL_READERS.update(_LOGICAL)
        self._read = fastavro.schemaless_reader
        try:
            self._schema = fastavro.parse_schema(_renamed(json.loads(text)), _write_hint=False)
            named: dict[str, Any] = {}
            _least(self._schema, named, frozenset())
        except _BROKEN as error:
            raise NotAvroError from error

    def read(self, file: io.BytesIO) -> Any:
        try:
            return self._read(file, self._schema, None)
        except _BROKEN as error:
            raise NotAvroError from error

    def whole(self, data: bytes) -> Any:
        file = io.BytesIO(data)
        found = self.read(file)
        if file.tell() < len(data):
            raise NotAvroError
        return found


def kinds_of(source: Source) -> dict[Path, str]:
    """Return the types of fields by path; ``number`` of a float with options, which take more."""
    return {
        field.at: "number" if field.converts and field.type == "float" else field.type
        for field in source.fields
    }


def _there(schema: _Schema | None) -> _Schema:
    if schema is None:
        raise NotAvroError
    return schema


def _step(value: Any, step: str | int) -> Any:
    if isinstance(step, int):
        return value[step] if type(value) is list and step < len(value) else None
    return value.get(step) if isinstance(value, dict) else None


def _plain(value: Any, kind: str) -> Any:
    if isinstance(value, Millis):
        return value if kind == "time" else value.number
    if kind in ("float", "number"):
        if isinstance(value, fractions.Fraction):
            try:
                value = float(value)
            except OverflowError:
                value = math.inf
        value = math.inf if value is _HUGE else value
        if kind == "float" and type(value) is float and not math.isfinite(value):
            return NOT_FINITE
    return value


def _least(schema: Any, named: dict[str, Any], inside: frozenset[str]) -> int:
    """Return the least bytes of a type; raise NotAvroError for one that has no bound."""
    if isinstance(schema, list):
        for one in schema:
            _least(one, named, inside)
        return 1
    if isinstance(schema, str):
        if schema in inside:
            raise NotAvroError
        return int(named.get(schema, 0 if schema == "null" else 1))
    kind = schema["type"]
    if not isinstance(kind, str):
        return _least(kind, named, inside)
    if kind in ("record", "error"):
        inner = inside | {schema["name"]}
        named[schema["name"]] = sum(_least(f["type"], named, inner) for f in schema["fields"])
        return int(named[schema["name"]])
    if kind == "array" and not _least(schema["items"], named, inside):
        raise NotAvroError
    if kind == "map":
        _least(schema["values"], named, inside)
    if kind == "fixed":
        named[schema["name"]] = schema["size"]
        return int(schema["size"])
    return _least(kind, named, inside)


def _renamed(schema: Any) -> Any:
    """Return a schema with the logical types of this module, and without those of others."""
    if isinstance(schema, list):
        return [_renamed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for name, value in schema.items():
        if name in ("type", "items", "values"):
            found[name] = _renamed(value)
        elif name == "fields" and isinstance(value, list):
            found[name] = [
                {**one, "type": _renamed(one.get("type"))} if isinstance(one, dict) else one
                for one in value
            ]
        elif name != "logicalType":
            found[name] = value
    logical, scale = schema.get("logicalType"), schema.get("scale", 0)
    is_good = {
        "decimal": type(scale) is int and 0 <= scale <= _SCALE_MAX,
        "uuid": schema.get("size") == 16,  # noqa: PLR2004 - bytes
    }.get(logical if isinstance(logical, str) else "", True)
    if is_good and f"{schema.get('type')}-verify-{logical}" in _LOGICAL:
        found["logicalType"] = f"verify-{logical}"
    return found


_HUGE = object()
"""A decimal beyond every float."""


def _decimal(data: bytes, schema: Any, *_: Any) -> Any:
    if len(data) > _DECIMAL_BYTES_MAX:
        return _HUGE
    whole = int.from_bytes(data, "big", signed=True)
    return fractions.Fraction(whole, 10 ** schema.get("scale", 0))


def _millis(scale: fractions.Fraction) -> Callable[..., Millis]:
    return lambda number, *_: Millis(math.floor(number * scale), number)


_LOGICAL: dict[str, Callable[..., Any]] = {
    f"{'int' if name == 'date' else 'long'}-verify-{name}": _millis(scale)
    for name, scale in _TIMES.items()
} | {
    "bytes-verify-decimal": _decimal,
    "fixed-verify-decimal": _decimal,
    "fixed-verify-uuid": lambda data, *_: str(uuid.UUID(bytes=data)),
}
