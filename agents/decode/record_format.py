"""The protocol of a record format: how its values are identified, and how they become events.

``agents/decode/formats.py`` lists all formats.
"""

from __future__ import annotations

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


class RecordFormat(Protocol):
    """A format of record values."""

    @property
    def name(self) -> str:
        """The name in options, pages and messages."""

    @property
    def content_type(self) -> str:
        """The media type, in lower case, by which the header ``content-type`` names this format."""

    @property
    def magics(self) -> tuple[bytes, ...]:
        """The first bytes that identify a value without that header; no JSON begins so."""

    @property
    def unreadable_reasons(self) -> tuple[str, ...]:
        """The reasons of this format alone for which a record is unreadable."""

    def decoder(self, source: Source) -> FormatDecoder:
        """Return the decoder of a source's records."""
