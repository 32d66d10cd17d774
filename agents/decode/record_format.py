"""The form of a record format: how its values are identified, and how they become events.

``agents/decode/formats.py`` lists all formats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tables.model.layer import Source

if TYPE_CHECKING:
    from agents.decode.run_decoder import RunDecoder


class FormatDecoder(Protocol):
    """Decodes the records of one source that are of one format."""

    def decode(self, run: RunDecoder, first: int, values: list[bytes]) -> None:
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
