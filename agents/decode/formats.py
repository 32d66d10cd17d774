"""The list of all record formats.

A format is a module beside this one that makes a ``RecordFormat``, and an entry here. For the
load generator ``app/load/writers.py`` writes it.
"""

from __future__ import annotations

from agents.decode.arrow_format import ARROW
from agents.decode.json_format import JSON, JSON_OR_LINES, NDJSON
from agents.decode.record_format import RecordFormat
from tables.model.ledger import LETTER_REASONS

FORMATS: tuple[RecordFormat, ...] = (JSON, NDJSON, ARROW)
"""Every format that a content type, or the first bytes of a value, identifies."""

OTHERWISE: RecordFormat = JSON_OR_LINES
"""The format of a value that neither of them identifies."""


def letter_reasons() -> frozenset[str]:
    """Return all reasons of dead letters, also those of single formats."""
    return LETTER_REASONS.union(*(form.unreadable_reasons for form in FORMATS))
