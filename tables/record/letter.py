"""Letters: the headers of events and records in the topics for dead and late events.

The value of a letter is the set-aside input, in its own form; docs/formats/dead-letters.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from tables.record.chunk import Headers

_INDEX = re.compile(r"(\d{1,10}(-\d{1,10})?(,\d{1,10}(-\d{1,10})?)*)?")


class LetterError(ValueError):
    """A record of a side topic that is not a letter."""


class Letter(msgspec.Struct, frozen=True):
    """The origin of a letter and the reason for it.

    ``index`` has the indexes of its events in the record, empty for a whole record that could not
    be read as events. ``layer`` is set for late events, and so is ``lateness_ms``: how far the
    least and the most late of them were behind the layer's watermark. ``cut`` is the size of a
    record that was longer than a letter may be, else 0.
    """

    topic: str
    partition: int
    offset: int
    index: str
    events: int
    reason: str
    detail: str
    content_type: str
    layer: str = ""
    cut: int = 0
    lateness_ms: tuple[int, int] | None = None

    @property
    def identity(self) -> tuple[str, int, int, str, str, str]:
        """The values that two letters about the same events have in common."""
        return self.topic, self.partition, self.offset, self.index, self.reason, self.layer

    def headers(self) -> Headers:
        """Return the record's headers."""
        found = [
            ("topic", self.topic),
            ("partition", str(self.partition)),
            ("offset", str(self.offset)),
            ("index", self.index),
            ("events", str(self.events)),
            ("reason", self.reason),
            ("detail", self.detail),
        ]
        optional = (("content-type", self.content_type), ("layer", self.layer))
        found += [(name, text) for name, text in optional if text]
        if self.lateness_ms is not None:
            found.append(("lateness", "{}-{}".format(*self.lateness_ms)))
        if self.cut:
            found.append(("cut", str(self.cut)))
        return tuple((name, text.encode()) for name, text in found)


def read_letter(headers: Headers) -> Letter:
    """Return the letter whose headers these are.

    Raises:
        LetterError: they are not those of a letter.
    """
    try:
        texts = {name: data.decode() for name, data in headers}
        letter = Letter(
            topic=texts["topic"],
            partition=int(texts["partition"]),
            offset=int(texts["offset"]),
            index=texts["index"],
            events=int(texts["events"]),
            reason=texts["reason"],
            detail=texts["detail"],
            content_type=texts.get("content-type", ""),
            layer=texts.get("layer", ""),
            cut=int(texts.get("cut", "0")),
            lateness_ms=_span(texts["lateness"]) if "lateness" in texts else None,
        )
    except (KeyError, ValueError) as error:
        raise LetterError(f"cannot read letter: header {error} is missing or unusable") from error
    if _INDEX.fullmatch(letter.index) is None:
        raise LetterError(f"cannot read letter: got index {letter.index!r}; want like '0,3-5'")
    return letter


def _span(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    return int(least), int(most)


def index_of(indexes: Sequence[int]) -> str:
    """Return indexes in ascending order as text: ``0,3-5`` for 0, 3, 4, 5."""
    spans: list[list[int]] = []
    for index in indexes:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)
