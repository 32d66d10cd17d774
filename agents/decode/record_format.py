"""The form of a record format: how its values are identified, and how they become events.

``agents/decode/formats.py`` lists all formats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from agents.decode.decoded_events import DecodedEvents
from tables.model.layer import Source
from tables.model.ledger import LedgerDelta, RecordColumn


class RunResults(Protocol):
    """The results of one run, to which decoders report the events and refusals of each record.

    Attributes:
        events: the chunk's events, to which those of the run are added.
        ledger: the counts of the run.
    """

    events: DecodedEvents
    ledger: LedgerDelta

    def refuse_record(self, index: int, column: RecordColumn, reason: str, detail: str) -> None:
        """Count a record in its column, and by reason if it is unreadable; set it aside."""

    def refuse_events(self, index: int, at: tuple[int, ...], reason: str, detail: str) -> None:
        """Count events of one record, those of the indexes ``at``, as malformed; set them aside."""

    def refuse_blank(self, index: int) -> None:
        """Refuse a record that is empty or only white space."""

    def decode_by_magic(self, index: int, value: bytes) -> bool:
        """Decode a record if its first bytes identify a format; return whether they do."""


class FormatDecoder(Protocol):
    """Decodes the records of one source that are of one format."""

    def decode(self, run: RunResults, first: int, values: list[bytes]) -> None:
        """Decode the neighbouring records ``first``, ``first + 1``, ... of a run.

        Every record becomes events, of which some may be malformed, or is refused: ``run`` has
        methods for both. No value is empty, or larger than the source accepts.
        """

    def select(self, value: bytes, events: tuple[int, ...]) -> tuple[bytes, str]:
        """Return a value with only these of the events of a decoded one, and its content type."""


@dataclasses.dataclass(frozen=True, slots=True)
class RecordFormat:
    """A format of record values.

    Attributes:
        name: in options, pages and messages.
        content_type: the media type, in lower case, in a header ``content-type`` of this format.
        decoder: returns the decoder of a source's records.
        magics: the first bytes that identify a value without that header; no JSON begins so.
        unreadable_reasons: those of this format alone for which a record is unreadable.
    """

    name: str
    content_type: str
    decoder: Callable[[Source], FormatDecoder]
    magics: tuple[bytes, ...] = ()
    unreadable_reasons: tuple[str, ...] = ()
