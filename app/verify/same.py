"""Pairs of rows that are not surely equal, as queries: recomputed cells beside answers or archive.

Rows that a query passes over are equal by the rules of ``cells.py``. A query leaves numbers to
those rules if floating-point arithmetic could be wrong about them.
"""

from __future__ import annotations

from app.verify import sql
from app.verify.layers import Cells
from app.verify.whole import Whole
from tables.model.layer import Accumulator, Layer, Measure

EXACT_MAX = 2**53
"""The greatest integer up to which all are floats, and a quotient of two is rounded correctly."""

_UNIT_ROUNDOFF = 2.0**-53
_HUGE = 2.0**900
"""A size below which nothing computed here is infinite."""

_FOUR_POWERS = 2**26
"""The square of a number below it is exact."""


def answers_table(layer: Layer) -> str:
    """Return the table of the workers' answers.

    Its columns are ``url``, the key, ``start``, ``stop``, ``version``, and ``m0`` and so on.
    """
    return f"answers_{layer.name}"


def archived_table(layer: Layer) -> str:
    """Return the table of archived rows.

    Its columns are ``part``, the key, ``start``, and ``a0`` and so on, by accumulator.
    """
    return f"archived_{layer.name}"


def measure_columns(layer: Layer) -> list[tuple[str, bool]]:
    """Return the columns of answered measures, and whether each has floats."""
    floats = {acc.field for acc in layer.accumulators if acc.type == "float"}
    return [
        (f"m{number}", one.field in floats or one.kind in ("mean", "variance"))
        for number, one in enumerate(layer.measures)
    ]


def stored_columns(layer: Layer) -> list[tuple[str, bool]]:
    """Return the columns of archived accumulators, and whether each has floats."""
    return [
        (f"a{number}", one.type == "float" and one.kind != "n")
        for number, one in enumerate(layer.accumulators)
    ]


def doubtful_answers(layer: Layer, urls: int, now_ms: int, whole: Whole) -> str:
    """Return a query: key, window start, expected values, URL, answered values."""
    keys, sums = sql.keys_of(layer), sql.sums_of(layer)
    identity = ", ".join([*keys, "start"])
    merged = [
        f"{made} AS {column}"
        for one in sums
        for column, made in zip(one.columns, one.merged("cells", one), strict=True)
    ]
    strict = f"bool_and(closed) AND NOT {_expired(layer, 'any_value(stop)', now_ms)}"
    cells = (
        f"SELECT {identity}, any_value(stop) AS stop, {strict} AS strict, sum(events)::BIGINT AS"
        f" events{''.join(f', {one}' for one in merged)} FROM {Cells.table(layer)} AS cells"
        f" GROUP BY {identity}"
    )
    on = sql.joined(keys, "w", "a")
    columns = ["events", *(column for one in sums for column in one.columns)]
    expected = [f"w.{column}" for column in columns]
    answered = ["a.stop", *(f"a.{column}" for column, _ in measure_columns(layer))]
    both = [f"coalesce(w.{one}, a.{one}) AS {one}" for one in [*keys, "start"]]
    head = [*both, "w.start IS NOT NULL", *expected]
    equal = sql.both(
        ["w.stop = a.stop"]
        + [
            _or_null_before(
                whole.measure_ms(layer, one.name),
                "w.start",
                f"a.{column}",
                _measure_same(one, f"a.{column}", _sums(sums, one.field)),
            )
            for one, (column, _) in zip(layer.measures, measure_columns(layer), strict=True)
        ]
    )
    pair = f"SELECT {', '.join(head)}, {{}} AS url, a.start IS NOT NULL, {', '.join(answered)}"
    different = f"NOT coalesce({equal}, false)"
    return (
        f"WITH whole AS ({cells}), rest AS (SELECT *, row_number() OVER (PARTITION BY {identity}"
        f" ORDER BY version DESC, url) AS age FROM {answers_table(layer)} AS a WHERE NOT EXISTS"
        f" (FROM whole AS w WHERE strict AND {on}))"
        f" {pair.format('each.url')} FROM whole AS w CROSS JOIN range({urls}) AS each(url)"
        f" LEFT JOIN {answers_table(layer)} AS a ON {on} AND a.url = each.url"
        f" WHERE strict AND {different} UNION ALL"
        f" {pair.format('a.url')} FROM rest AS a LEFT JOIN whole AS w ON {on}"
        f" WHERE age = 1 AND {different} UNION ALL"
        f" {pair.format('0')} FROM whole AS w LEFT JOIN rest AS a ON {on} WHERE NOT strict"
        f" AND NOT {_expired(layer, 'w.stop', now_ms)} AND a.start IS NULL ORDER BY {identity}, url"
    )


def doubtful_archived(layer: Layer, now_ms: int, whole: Whole, *, early: bool) -> str:
    """Return a query: key, window start, expected values, partition, archived values."""
    keys, sums = sql.keys_of(layer), sql.sums_of(layer)
    on = f"{sql.joined(keys, 'c', 'a')} AND c.part = a.part"
    columns = ["events", *(column for one in sums for column in one.columns)]
    both = [f"coalesce(c.{one}, a.{one}) AS {one}" for one in [*keys, "start"]]
    parts = [
        *both, "c.start IS NOT NULL", *(f"c.{column}" for column in columns),
        "coalesce(c.part, a.part) AS number", "a.start IS NOT NULL",
        *(f"a.{column}" for column, _ in stored_columns(layer)),
    ]  # fmt: skip
    equal = sql.both(
        [
            _or_null_before(
                whole.column_ms(layer, acc),
                "c.start",
                f"a.{column}",
                _stored_same(layer, acc, f"a.{column}", _sums(sums, acc.field)),
            )
            for acc, (column, _) in zip(layer.accumulators, stored_columns(layer), strict=True)
        ]
    )
    sent = "true" if early else "c.closed"
    may_lack = f"(a.start IS NULL AND (NOT {sent} OR {_expired(layer, 'c.stop', now_ms)}))"
    order = ", ".join([*keys, "start", "number"])
    return (
        f"SELECT {', '.join(parts)} FROM {Cells.table(layer)} AS c FULL OUTER JOIN"
        f" {archived_table(layer)} AS a ON {on}"
        f" WHERE NOT (coalesce({may_lack}, false) OR coalesce({equal}, false)) ORDER BY {order}"
    )


def _or_null_before(whole_ms: int | None, start: str, got: str, test: str) -> str:
    """Return a test that a null passes in windows from before the map had the measure."""
    if whole_ms is None:
        return test
    return f"CASE WHEN {start} < {whole_ms} AND {got} IS NULL THEN true ELSE {test} END"


def _expired(layer: Layer, stop: str, now_ms: int) -> str:
    """Return whether a row may be gone from the archive."""
    ttl_ms = layer.archive_ttl_ms
    return f"({stop} + {ttl_ms} <= {now_ms})" if ttl_ms > 0 else "false"


def _sums(sums: list[sql.Sums], field: str | None) -> sql.Sums | None:
    return next((one for one in sums if one.name == field), None)


def _measure_same(measure: Measure, got: str, sums: sql.Sums | None) -> str:
    """Return whether an answered measure surely equals the expected one."""
    if sums is None:
        return f"{got} = w.events"
    columns = [f"w.{column}" for column in sums.columns]
    n, total, least, most, high, low, size = columns
    if measure.kind in ("min", "max"):
        return f"{got} IS NOT DISTINCT FROM {least if measure.kind == 'min' else most}"
    none = f"({n} = 0 AND {got} IS NULL)"
    if sums.is_float:
        if measure.kind == "variance":
            test = _float_squares_same(f"{got} * {n}", columns)
        else:
            test = _float_sum_same(got, n, total, size, mean=measure.kind == "mean")
    elif measure.kind == "sum":
        test = f"({n} > 0 AND {got} = {total})"
    elif measure.kind == "mean":
        test = (
            f"({n} > 0 AND abs({total}) <= {EXACT_MAX} AND {got} = {total}::DOUBLE / {n}::DOUBLE)"
        )
    else:
        scaled = f"({n}::HUGEINT * {low} - {total} * {total})"
        test = (
            f"CASE WHEN {n} > 0 AND {n} < {_FOUR_POWERS} AND {high} = 0 AND {low} <= {EXACT_MAX}"
            f" THEN {scaled} <= {EXACT_MAX} AND {got} = {scaled}::DOUBLE / ({n} * {n})::DOUBLE"
            " ELSE false END"
        )
    return f"({none} OR {test})"


def _stored_same(layer: Layer, acc: Accumulator, got: str, sums: sql.Sums | None) -> str:
    """Return whether an archived accumulator surely equals the expected one."""
    if sums is None:
        return f"coalesce({got}, 0) = c.events"
    columns = [f"c.{column}" for column in sums.columns]
    n, total, least, most, high, low, size = columns
    given = f"coalesce({got}, 0)"
    if acc.kind in ("sqlo", "sqhi"):
        halves = [
            f"coalesce(a.{column}, 0)::HUGEINT"
            for name in (f"sqhi_{acc.field}", f"sqlo_{acc.field}")
            for (column, _), one in zip(stored_columns(layer), layer.accumulators, strict=True)
            if one.column == name
        ]
        return _halves_same(halves[0], halves[1], high, low)
    none = f"({n} = 0 AND {given} = 0)"
    float_sum = f"({none} OR {_float_sum_same(given, n, total, size)})"
    return {
        "min": f"{got} IS NOT DISTINCT FROM {least}",
        "max": f"{got} IS NOT DISTINCT FROM {most}",
        "n": f"{given} = {n}",
        "sum": float_sum if sums.is_float else f"{given} = {total}",
        "m2": f"({none} OR {_float_squares_same(given, columns)})",
    }[acc.kind]


def _halves_same(got_high: str, got_low: str, high: str, low: str) -> str:
    """Return whether two halves have the same sum, however they are split."""
    mask = 2**64 - 1
    return (
        f"({got_high} >= 0 AND {got_low} >= 0"
        f" AND {got_high} + ({got_low} >> 64) = {high} + ({low} >> 64)"
        f" AND ({got_low} & {mask}) = ({low} & {mask}))"
    )


def _float_sum_same(got: str, n: str, total: str, size: str, *, mean: bool = False) -> str:
    """Return whether a sum of floats, or their mean, is as near as any order of additions is."""
    unit = 2.0**sql.SCALE_BITS
    whole = f"({total} * {unit!r})"
    slack = f"{size} * {unit * _UNIT_ROUNDOFF!r}" + ("" if mean else f" * {n}")
    want = f"{whole} / {n}" if mean else whole
    near = f"abs({got} - {want}) <= {slack}"
    return (
        f"CASE WHEN {size} >= {_HUGE!r} THEN false WHEN {n} = 1 THEN {got} = {whole}"
        f" WHEN {n} > 1 THEN {near} ELSE false END"
    )


def _float_squares_same(got: str, columns: list[str]) -> str:
    """Return whether a sum of squared deviations is as near as any order of additions is."""
    n, total, _, _, large, square, size = columns
    whole = f"({total} * {2.0**sql.SCALE_BITS!r})"
    want = f"({square} - {whole} * ({whole} / {n}))"
    return (
        f"CASE WHEN {large} > 0 OR {n} = 0 OR {size} >= {_HUGE!r} THEN false"
        f" ELSE abs({got} - {want}) <= {4 * _UNIT_ROUNDOFF!r} * {square} * {n} END"
    )
