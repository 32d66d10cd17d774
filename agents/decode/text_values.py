"""Text values: texts of numbers and booleans by the type that a field is declared as.

An ``int`` is written in decimal digits, with ``-`` before them or nothing; a ``float`` as JSON
writes numbers, leading zeros allowed, or as ``nan``, ``inf`` or ``infinity`` in any case, so that
it is known for not finite; a ``bool`` as ``true`` or ``false``.
"""

from __future__ import annotations

import dataclasses

import polars as pl

WHOLE = r"^-?[0-9]+$"
_NUMBER = r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$|^-?(?i:inf|infinity|nan)$"


@dataclasses.dataclass(frozen=True, slots=True)
class TextValues:
    """The values of texts, null for texts that have none.

    Attributes:
        values: the values, of the declared type.
        wrong: whether a text is not written as a value of the type.
        beyond: whether a text is written as one that the type cannot hold.
    """

    values: pl.Series
    wrong: pl.Series
    beyond: pl.Series


def text_values(texts: pl.Series, kind: str) -> TextValues:
    """Return the values of texts (String) of a type; a float may be infinite, or not a number."""
    if kind == "string":
        nowhere = pl.repeat(value=False, n=len(texts), eager=True)
        return TextValues(texts, nowhere, nowhere)
    if kind == "bool":
        is_written = texts.is_in(["true", "false"])
        values = (texts == "true").set(~is_written, None)
    else:
        is_written = texts.str.contains(WHOLE if kind == "int" else _NUMBER)
        dtype = pl.Int64() if kind == "int" else pl.Float64()
        values = texts.set(~is_written, None).cast(dtype, strict=False)
    is_written = is_written.fill_null(value=True)
    is_lost = texts.is_not_null() & is_written & values.is_null()
    return TextValues(values, ~is_written, is_lost)
