"""Lines: documents of JSON as they are, and the SQL by which the engine decodes them by the column.

The engine's reader accepts more than JSON: commas before a bracket, NaN, numbers beyond every
type, names that are there twice. A line that may have any of these is in doubt, and so is one
whose values are not of their types; those are left to the plain rules of ``records.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import polars as pl

from app.verify.database import text
from app.verify.records import TIME_MS_MAX, TIME_MS_MIN
from app.verify.sql import both, either
from tables.model.layer import Field, Source
from tables.model.path import Path

_LENIENT = (
    r",[ \t\r\n]*[\]}]",
    r"[:,\[][ \t\r\n]*-?(?:[iI]|[nN][aA])",
    r"[0-9][eE]\+?[0-9]{3}",
    r"\\u00[0-7]",
)
"""Lines that are not JSON; numbers beyond the largest float; and escapes of ASCII within a name."""

_DIGITS_MAX = 300
"""The least digits of a number that may be beyond the largest float."""

_DIGITS = f"[0-9]{{{_DIGITS_MAX}}}"

_NESTED_MAX = 100
"""Brackets of a document; the plain reader gives up if they are nested too deeply."""

_RFC3339 = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{3,9})?Z"
)
"""The form of most times; others are left to the plain rules."""

_TEXTS = {
    "int": "-?[0-9]{1,18}",
    "float": r"-?[0-9]{1,15}(\.[0-9]{1,15})?",
    "bool": "true|false",
}
"""The forms of most texts of numbers and booleans."""

_MICROS_EXACT = 8e15
"""Microseconds, up to the year 2223, whose thousandth part as a float is rounded to no integer."""

_INTS = "('BIGINT', 'UBIGINT')"


Line = tuple[int, int, int, int, bytes]
"""The partition, offset, index and append time of a document, and its bytes."""


def frame_of(lines: Sequence[Line], doubt: str) -> pl.DataFrame:
    """Return lines as columns, with their numbers; a line in doubt, or not UTF-8, is null."""
    parts, offsets, indexes, appended, texts = zip(*lines, strict=True)
    try:
        line = pl.Series("line", texts, pl.Binary).cast(pl.String)
    except pl.exceptions.PolarsError:
        line = pl.Series("line", [_decoded(one) for one in texts], pl.String)
    doubtful = pl.col("line").str.contains(doubt)
    # Each test reads all lines again, and only the few long ones can have these numbers.
    longest = line.str.len_bytes().max() or 0
    if longest >= _DIGITS_MAX:  # type: ignore[operator]
        doubtful |= pl.col("line").str.contains(_DIGITS)
    if longest >= 2 * _NESTED_MAX:  # type: ignore[operator]
        doubtful |= _brackets("{") + _brackets("[") > _NESTED_MAX
    return pl.DataFrame(
        [
            pl.Series("part", parts, pl.Int32),
            pl.Series("offset", offsets, pl.Int64),
            pl.Series("index", indexes, pl.Int32),
            pl.Series("appended", appended, pl.Int64),
            line,
            pl.int_range(len(texts), dtype=pl.Int64, eager=True).alias("number"),
        ]
    ).with_columns(pl.when(~doubtful).then("line"))


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def _brackets(one: str) -> pl.Expr:
    return pl.col("line").str.count_matches(one, literal=True)


def doubt(source: Source) -> str:
    """Return a pattern of lines that may not be JSON, or may have a declared name twice."""
    steps = {step: None for path in source.paths for step in path if isinstance(step, str)}
    names = [re.escape(json.dumps(step, ensure_ascii=False)) for step in steps]
    twice = [f"{name}.*{name}" for name in names]
    # Names that may be written in several ways, or in none that a path of the engine can have.
    odd = [r"\\u"] if not all(map(str.isascii, steps)) else []
    odd += [""] if any(map(_is_odd, source.paths)) else []
    return f"(?s){'|'.join([*_LENIENT, *twice, *odd])}"


def decoded(source: Source, needed: Mapping[str, str]) -> str:
    """Return a query of the lines of ``incoming`` as events.

    Its columns are those of :func:`frame_of` but for the line, then ``time``, ``type``, ``id``,
    the needed fields, and ``sound``: whether a line is surely an event, and this one.

    Args:
        source: the source.
        needed: by field that is needed, its column.
    """
    types = {field.at: field.type for field in source.fields}
    roles = {source.time_at: "time", source.type_at: "type"}
    paths = "[" + ", ".join(text(_path(path)) for path in source.paths) + "]"
    at = {path: (f"t[{number}]", f"s[{number}]") for number, path in enumerate(source.paths, 1)}
    kind, value = at[source.type_at]
    columns = [f"{_time(*at[source.time_at], source)} AS time", f"{value} AS type"]
    sound = [f"{kind} = 'VARCHAR'", f"time BETWEEN {TIME_MS_MIN} AND {TIME_MS_MAX}"]
    sound += [_is_sound(*at[one.at], one) for one in source.fields if one.at not in roles]
    sound += [f"{at[field.at][1]} IS NOT NULL" for field in source.fields if field.required]
    if source.id_at is None:
        columns.append("NULL::VARCHAR AS id")
    else:
        columns.append(_id(at[source.id_at][1], types.get(source.id_at)))
        sound.append(_is_sound_id(*at[source.id_at], types.get(source.id_at)))
    for name, column in needed.items():
        field = source.field(name)
        own = roles.get(field.at)
        columns.append(f"{own or _value(at[field.at][1], field.type)} AS {column}")
    same = 'part, "offset", index, appended, number'
    return (
        f"SELECT {same}, {', '.join(columns)}, coalesce({both(sound)}, false) AS sound FROM"
        f" (SELECT {same}, CASE WHEN valid THEN json_type(line, {paths}) END AS t, CASE WHEN valid"
        f" THEN json_extract_string(line, {paths}) END AS s FROM (SELECT *,"
        " coalesce(json_valid(line), false) AS valid FROM incoming))"
    )


def _path(path: Path) -> str:
    """Return a path in the engine's own form; of one that it does not read, any that it does."""
    if _is_odd(path):
        return "$"
    steps = (f"[{step}]" if isinstance(step, int) else f'."{step}"' for step in path)
    return "$" + "".join(steps)


def _is_odd(path: Path) -> bool:
    """Return whether a path has names that the engine does not read: it knows no escapes there."""
    return any(one in '"\\' or one < " " for step in path if isinstance(step, str) for one in step)


def _time(kind: str, value: str, source: Source) -> str:
    unit_ms = source.time_unit_ms
    fraction = f"CASE WHEN strlen({value}) > 20 THEN substring({value}, 21, 3)::BIGINT ELSE 0 END"
    form = _RFC3339 + ("?" if source.time_offset == "Z" else "")
    integer = f"try_cast({value}::HUGEINT * {unit_ms} AS BIGINT)"
    is_text = f"{kind} = 'VARCHAR' AND regexp_full_match({value}, {text(form)})"
    from_text = f"epoch_ms(try_cast(left({value}, 19) AS TIMESTAMP)) + {fraction}"
    cases = [f"{kind} IN {_INTS} THEN {integer}", f"{is_text} THEN {from_text}"]
    if source.time_text:
        digits = f"regexp_full_match({value}, {text(_TEXTS['int'])})"
        cases.append(f"{kind} = 'VARCHAR' AND {digits} THEN {integer}")
    if source.time_fraction:
        micros = f"round_even({value}::DOUBLE * {unit_ms * 1e3!r}, 0)"
        near = f"abs({micros}) < {_MICROS_EXACT!r}"
        cases.append(f"{kind} = 'DOUBLE' AND {near} THEN floor({micros} / 1000)::BIGINT")
    return f"CASE {' '.join(f'WHEN {case}' for case in cases)} END"


def _value(value: str, kind: str) -> str:
    return {
        "string": value,
        "int": f"try_cast({value} AS BIGINT)",
        "float": f"try_cast({value} AS DOUBLE)",
        "bool": f"({value} = 'true')",
    }[kind]


def _id(value: str, declared: str | None) -> str:
    if declared == "bool":  # as Python writes it
        return f"CASE {value} WHEN 'true' THEN 'True' WHEN 'false' THEN 'False' END AS id"
    return f"{value} AS id"


def _is_sound(kind: str, value: str, field: Field) -> str:
    """Return whether a value surely is one of a field; most texts of numbers and digits are."""
    found = [_has_type(kind, value, field.type)]
    if field.text:
        tests = [f"{kind} = 'VARCHAR'", f"regexp_full_match({value}, {text(_TEXTS[field.type])})"]
        found.append(both(tests))
    if field.digits:
        found.append(both([_has_type(kind, value, "int"), f"{value} <> '-0'"]))
    return either(found)


def _has_type(kind: str, value: str, declared: str) -> str:
    kinds = {
        "string": "('VARCHAR', 'NULL')",
        "int": "('BIGINT', 'UBIGINT', 'NULL')",
        "float": "('DOUBLE', 'BIGINT', 'UBIGINT', 'NULL')",
        "bool": "('BOOLEAN', 'NULL')",
    }[declared]
    tests = [f"{kind} IN {kinds}"]
    if declared == "int":
        tests.append(f"({value} IS NULL OR try_cast({value} AS BIGINT) IS NOT NULL)")
    elif declared == "float":
        tests.append(f"({value} IS NULL OR isfinite(try_cast({value} AS DOUBLE)))")
    return either([f"{kind} IS NULL", both(tests)])


def _is_sound_id(kind: str, value: str, declared: str | None) -> str:
    """Return whether an id is surely one; the text of a float is another one here and there."""
    if declared == "float":
        return f"coalesce({kind} = 'NULL', true)"
    if declared is not None:
        return _has_type(kind, value, declared)
    return either([_has_type(kind, value, "string"), _has_type(kind, value, "int")])
