"""Avro as producers write it: values by a schema, whatever its logical types, and frames."""

from __future__ import annotations

import io
from typing import Any

import fastavro


def plain_of(schema: Any) -> Any:
    """Return a schema without logical types, by which any number can be written."""
    if isinstance(schema, list):
        return [plain_of(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: value for name, value in schema.items() if name != "logicalType"}
    for name in ("type", "items", "values"):
        if name in found:
            found[name] = plain_of(found[name])
    if "fields" in found:
        found["fields"] = [one | {"type": plain_of(one["type"])} for one in found["fields"]]
    return found


def encoded(schema: Any, value: Any) -> bytes:
    """Return a value as the bytes of a schema."""
    file = io.BytesIO()
    fastavro.schemaless_writer(file, plain_of(schema), value)
    return file.getvalue()


def framed(number: int, body: bytes) -> bytes:
    """Return a value behind the id of its schema, as clients of a registry write it."""
    return b"\0" + number.to_bytes(4, "big") + body
