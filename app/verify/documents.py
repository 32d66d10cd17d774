"""Documents: the JSON documents of a value, also of one that is an array, or inflated."""

from __future__ import annotations

import io
import json
import math
import zlib
from typing import Any, NoReturn

GZIP_START = b"\x1f\x8b"
"""The first bytes of gzip; no JSON and no Arrow stream begins with them."""

_BLANKS = " \t\r\n"
_PIECE_BYTES = 2 << 10
_DIGITS_MAX = 400
"""Numbers of more digits are beyond every type, and beyond the default limit of ``int``."""


class Pairs(list[tuple[str, Any]]):
    """The names and values of a JSON object, repeated ones too."""


def load_json(text: str) -> Any:
    """Return a JSON document, with :class:`Pairs` for objects; None for other text.

    ``null`` gives an empty list: like any other document that is not an object, it is not an event.
    """
    try:
        found = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is not text
    except (json.JSONDecodeError, UnicodeEncodeError, RecursionError):
        return None
    except ValueError:  # a number of very many digits, or NaN
        return _load_large(text)
    return [] if found is None else found


def elements_of(value: bytes) -> list[bytes] | None:
    """Return the documents in an array, each as it is written; None if a value is no array."""
    if not value.lstrip(_BLANKS.encode()).startswith(b"["):
        return None
    if load_json(value.decode(errors="replace")) is None:
        return None
    # Bytes that are not UTF-8 are only in texts by now, and stay in their documents.
    text = value.decode(errors="surrogateescape")
    found = []
    at = _skip(text, text.index("[") + 1)
    while text[at] != "]":
        _, end = _SCANNER.raw_decode(text, at)
        found.append(text[at:end].encode(errors="surrogateescape"))
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return found


def inflated(value: bytes, bytes_max: int) -> bytes | None:
    """Return the inflated bytes of gzip, one more than ``bytes_max`` of too many; None if broken.

    Members may follow each other, with zeros behind each.
    """
    found = bytearray()
    member = zlib.decompressobj(wbits=31)
    packed = io.BytesIO(value)
    # Members may be tiny and many, and each copies the rest of the piece that it ends in.
    while piece := packed.read(_PIECE_BYTES):
        rest = piece
        while rest:
            if member.eof:
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                found += member.decompress(rest, bytes_max + 1 - len(found))
            except zlib.error:
                return None
            if len(found) > bytes_max:
                return bytes(found)
            rest = member.unused_data
    return bytes(found) if member.eof else None


def is_text(text: str) -> bool:
    """Return whether a text is one of Unicode, and not bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _skip(text: str, at: int) -> int:
    while text[at] in _BLANKS:
        at += 1
    return at


def _load_large(text: str) -> Any:
    try:
        found = _LARGE_DECODER.decode(text)
    except ValueError:
        return None
    return [] if found is None else found


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def _large_int(text: str) -> int | float:
    return int(text) if len(text) < _DIGITS_MAX else math.inf


_DECODER = json.JSONDecoder(object_pairs_hook=Pairs, parse_constant=_no_number)
_LARGE_DECODER = json.JSONDecoder(
    object_pairs_hook=Pairs, parse_constant=_no_number, parse_int=_large_int
)
_SCANNER = json.JSONDecoder(parse_int=_large_int)
