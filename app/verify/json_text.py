"""JSON texts as documents, by the standard library: names that are there twice, and any number."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

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
