"""Avro schemas: those that events can be read with, without a length that is a lie being believed.

fastavro allocates the bytes that it has read, so a length beyond them costs nothing. Two kinds of
schemas are refused, because a few bytes of theirs could cost any amount of memory or depth: arrays
whose items have no bytes, and types that hold themselves.

Logical types get names of our own, so that fastavro leaves their values as they are written: it
fails on a time of no calendar, which is a fault of one event alone.
"""

from __future__ import annotations

import dataclasses
import decimal
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from agents.decode.struct_events import Instant
from tables.model.errors import TreasureMapError
from treasure_map.extras import install

_OWN = "treasure-map-"
_PER_DAY_MS = 86_400_000
_TIMES = {
    "timestamp-millis": (1, 1),
    "timestamp-micros": (1, 1_000),
    "timestamp-nanos": (1, 1_000_000),
    "date": (_PER_DAY_MS, 1),
}
"""The milliseconds of a number: times the first, divided by the second."""

_SCALE_MAX = 10_000
_DECIMAL_BYTES_MAX = 5_000
"""The bytes of a decimal that is beyond every float, whatever its scale."""


class AvroError(TreasureMapError):
    """A schema, or a value, that is not Avro that events can be read from."""


class NoAvroError(AvroError):
    """The package that reads Avro is not installed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scaled:
    """A decimal as it is written: the bytes of its whole number, and its digits after the point."""

    data: bytes
    scale: int

    def __float__(self) -> float:
        """Return the nearest float."""
        if len(self.data) > _DECIMAL_BYTES_MAX:
            return float("inf")
        number = decimal.Decimal(int.from_bytes(self.data, "big", signed=True))
        return float(number.scaleb(-self.scale, _DECIMALS))


_DECIMALS = decimal.Context(prec=decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)


class AvroSchema:
    """A schema that events can be read with.

    Args:
        text: the schema as JSON.

    Raises:
        AvroError: it is not a schema, or none that events can be read with.
        NoAvroError: fastavro is not installed.
    """

    def __init__(self, text: str | bytes) -> None:
        fastavro = fastavro_module()
        try:
            found = json.loads(text)
            self._parsed = fastavro.parse_schema(_named(found), _write_hint=False)
            _check(self._parsed)
        except AvroError:
            raise
        except Exception as error:
            raise AvroError(f"cannot use schema: {type(error).__name__}: {error}") from error
        self._read = fastavro.schemaless_reader

    def read(self, file: Any) -> Any:
        """Return the value at the position of a file in memory, behind which it stands then.

        Raises:
            AvroError: the bytes are not of the schema.
        """
        try:
            return self._read(file, self._parsed, None)
        except Exception as error:
            raise AvroError(f"{type(error).__name__}: {error}") from error


def fastavro_module() -> Any:
    """Return the package that reads Avro; raises NoAvroError."""
    try:
        import fastavro  # noqa: PLC0415 - only some workers need it
        from fastavro.read import LOGICAL_READERS  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise NoAvroError(
            f"cannot use Avro: {error}; want the packages of the extra avro; {install('avro')}"
        ) from error
    LOGICAL_READERS.update(_LOGICAL)
    return fastavro


def _instant(times: int, divided: int) -> Callable[..., Instant]:
    return lambda number, *_: Instant(number, number * times // divided)


_LOGICAL: dict[str, Callable[..., Any]] = {
    f"{'int' if name == 'date' else 'long'}-{_OWN}{name}": _instant(*scale)
    for name, scale in _TIMES.items()
} | {
    f"bytes-{_OWN}decimal": lambda data, schema, *_: Scaled(data, schema.get("scale", 0)),
    f"fixed-{_OWN}decimal": lambda data, schema, *_: Scaled(data, schema.get("scale", 0)),
    f"fixed-{_OWN}uuid": lambda data, *_: str(uuid.UUID(bytes=data)),
}


def _named(schema: Any) -> Any:
    """Return a schema whose logical types have our names; others are left out."""
    if isinstance(schema, list):
        return [_named(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: value for name, value in schema.items() if name != "logicalType"}
    for inner in ("type", "items", "values"):
        if inner in kept:
            kept[inner] = _named(kept[inner])
    if isinstance(kept.get("fields"), list):
        kept["fields"] = [
            one | {"type": _named(one.get("type"))} if isinstance(one, dict) else one
            for one in kept["fields"]
        ]
    logical = schema.get("logicalType")
    if isinstance(logical, str):
        own = f"{_OWN}{logical.removeprefix('local-')}"
        if f"{schema.get('type')}-{own}" in _LOGICAL and _is_sound(schema, logical):
            kept["logicalType"] = own
    return kept


def _is_sound(schema: dict[str, Any], logical: str) -> bool:
    """Return whether a logical type has the attributes that it needs; else it does not count."""
    if logical == "uuid":
        return bool(schema.get("size") == 16)  # noqa: PLR2004 - bytes of a UUID
    scale = schema.get("scale", 0)
    return logical != "decimal" or (type(scale) is int and 0 <= scale <= _SCALE_MAX)


def _check(parsed: Any) -> None:
    """Raise AvroError if a schema holds itself, or has arrays of items without bytes."""
    types: dict[str, Any] = {}
    for one in _types(parsed):
        if isinstance(one, dict) and "name" in one:
            types[one["name"]] = one
    _Look(types).bytes_min(parsed, ())


def _types(schema: Any) -> Iterator[Any]:
    """Yield a parsed schema and all schemas in it."""
    yield schema
    if isinstance(schema, list):
        for one in schema:
            yield from _types(one)
    elif isinstance(schema, dict):
        for field in schema.get("fields", ()):
            yield from _types(field["type"])
        for name in ("items", "values"):
            if name in schema:
                yield from _types(schema[name])
        if isinstance(schema.get("type"), dict | list):
            yield from _types(schema["type"])


class _Look:
    """Finds the least bytes of a type, and refuses types that cannot be read within bounds."""

    def __init__(self, types: dict[str, Any]) -> None:
        self._types = types
        self._known: dict[str, int] = {}

    def bytes_min(self, schema: Any, outer: tuple[str, ...]) -> int:
        """Return 0 if a value of the schema may have no bytes; ``outer`` names the types around."""
        if isinstance(schema, list):
            return 1 + min((self.bytes_min(one, outer) for one in schema), default=0)
        if isinstance(schema, str):
            if schema not in self._types:
                return 0 if schema == "null" else 1
            schema = self._types[schema]
        kind = schema["type"]
        if not isinstance(kind, str):
            return self.bytes_min(kind, outer)
        name = schema.get("name")
        if name in outer:
            raise AvroError(f"cannot use schema: {name} holds itself")
        if name in self._known:
            return self._known[name]
        found = self._bytes_min(kind, schema, (*outer, name) if name else outer)
        if name:
            self._known[name] = found
        return found

    def _bytes_min(self, kind: str, schema: Any, outer: tuple[str, ...]) -> int:
        if kind in ("record", "error"):
            return sum(self.bytes_min(field["type"], outer) for field in schema["fields"])
        if kind == "array":
            if not self.bytes_min(schema["items"], outer):
                raise AvroError("cannot use schema: an array has items without bytes")
            return 1
        if kind == "map":
            self.bytes_min(schema["values"], outer)
            return 1
        if kind == "fixed":
            return int(schema["size"])
        return self.bytes_min(kind, outer) if kind in self._types else int(kind != "null")
