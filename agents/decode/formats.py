"""The list of all record formats.

A format is a module beside this one that makes a ``RecordFormat``, and an entry here. For the
load generator ``app/load/writers.py`` writes it.
"""

from __future__ import annotations

import dataclasses
import functools

from agents.decode.arrow_format import ARROW
from agents.decode.avro_format import AVRO, AvroDecoder
from agents.decode.csv_format import CSV
from agents.decode.json_format import JSON, JSON_OR_LINES, NDJSON
from agents.decode.protobuf_format import PROTOBUF
from agents.decode.record_format import RecordFormat
from agents.decode.schemas import Schemas
from tables.model.layer import Source
from tables.model.ledger import LETTER_REASONS

FORMATS: tuple[RecordFormat, ...] = (JSON, NDJSON, ARROW, CSV, AVRO)
"""Every format that a content type, or the first bytes of a value, identifies."""

DECLARED: tuple[RecordFormat, ...] = (PROTOBUF,)
"""Formats of records that only the map can explain."""

OTHERWISE: RecordFormat = JSON_OR_LINES
"""The format of a value that neither of them identifies."""


def formats_of(
    source: Source, schemas: Schemas | None
) -> tuple[tuple[RecordFormat, ...], RecordFormat]:
    """Return the formats of a source's records, and that of a value that nothing identifies.

    If the source declares a format, it has all values without a content type, whatever bytes they
    begin with. ``schemas`` are those of the registry, if the source needs one.
    """
    if source.format is None:
        return FORMATS, OTHERWISE
    avro = functools.partial(AvroDecoder, schemas=schemas)
    own = [form for form in DECLARED if form.name == source.format.name]
    forms = [dataclasses.replace(form, magics=()) for form in (*FORMATS, *own)]
    forms = [dataclasses.replace(one, decoder=avro) if one.name == "avro" else one for one in forms]
    (declared,) = (form for form in forms if form.name == source.format.name)
    return tuple(forms), declared


def letter_reasons() -> frozenset[str]:
    """Return all reasons of dead letters, also those of single formats."""
    return LETTER_REASONS.union(*(one.unreadable_reasons for one in (*FORMATS, *DECLARED)))
