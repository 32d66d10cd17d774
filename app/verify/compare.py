"""Rows and ledgers compared: the recomputed ones with those of workers and archive.

SQL compares tables with each other and passes over pairs that are surely equal. Any other pair of
rows is compared here, number by number: few of them differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from app.verify import same, sql
from app.verify.cells import (
    SCALE_BITS,
    Cell,
    FieldSums,
    equals,
    is_infinite,
    may_be_infinite,
    measure_of,
    shown,
)
from app.verify.database import Database
from app.verify.events import Partition
from app.verify.layers import Cells, Key, folded_as
from app.verify.report import Difference, LayerReport
from app.verify.whole import EVER_SINCE, Whole
from app.verify.windows import window_end
from tables.model.layer import Accumulator, Layer, Map

_RECORD_COLUMNS = (
    "with_events", "heartbeat", "tombstone", "empty", "oversized", "unreadable", "gap",
)  # fmt: skip
_OF_REPEATS = ("layer.", "events.classified", "events.duplicate")
"""Counts that follow from which events are duplicates."""

_EVENT_COLUMNS = ("malformed", "future", "duplicate", "unclassified", "classified")
_LAYER_COLUMNS = ("selected", "folded", "filtered", "too_late")


class DifferenceLog:
    """Differences: all are counted, the first are kept."""

    def __init__(self, kept_max: int) -> None:
        self._kept_max = kept_max
        self.count = 0
        self.kept: list[Difference] = []

    def add(self, what: str, where: str, want: object, got: object) -> None:
        """Count a difference of these parts."""
        self.take(Difference(what, where, _text(want), _text(got)))

    def take(self, difference: Difference) -> None:
        """Count a difference; keep it if it is among the first."""
        self.count += 1
        if len(self.kept) < self._kept_max:
            self.kept.append(difference)


def compare_answers(
    database: Database,
    layer: Layer,
    urls: Sequence[str],
    found: DifferenceLog,
    now_ms: int,
    *,
    whole: Whole = EVER_SINCE,
) -> LayerReport:
    """Compare a layer's rows with the answers of each worker.

    A row whose window is closed everywhere is archived, so every worker must answer with it. One
    that is open is answered by the worker that has it, others may have an older version of it.
    """
    identity = ", ".join([*sql.keys_of(layer), "start"])
    expected, answers = Cells.table(layer), same.answers_table(layer)
    report = LayerReport(layer.name)
    report.expected = database.number(
        f"SELECT count(*) FROM (SELECT DISTINCT {identity} FROM {expected})"
    )
    report.http = database.number(
        f"SELECT count(*) FROM (SELECT DISTINCT {identity} FROM {answers})"
    )
    last: tuple[Key, int] | None = None
    for row in database.rows(same.doubtful_answers(layer, len(urls), now_ms, whole)):
        key, start, cell, rest = _read_row(layer, row)
        url, has_answer, stop, *values = rest
        measures = dict(zip((one.name for one in layer.measures), values, strict=True))
        answer = (stop, measures) if has_answer else None
        problem = _answer_problem(layer, start, cell, answer, whole)
        if problem is not None and last != (key, start):
            last = key, start
            report.differing += 1
            found.add("http", f"{_where(layer, key, start)} at {urls[url]}", *problem)
    return report


def compare_archive(
    database: Database,
    layer: Layer,
    found: DifferenceLog,
    now_ms: int,
    *,
    early: bool,
    whole: Whole = EVER_SINCE,
) -> int:
    """Compare a layer's rows with the archived ones, part by part; return how many differ.

    A part of a closed window must be present, of an open one only if those are sent ``early``.
    Another one may be, with the value that it has.
    """
    differing = 0
    for row in database.rows(same.doubtful_archived(layer, now_ms, whole, early=early)):
        key, start, cell, rest = _read_row(layer, row)
        part, is_stored, *values = rest
        names = [acc.column for acc in layer.accumulators]
        stored = dict(zip(names, values, strict=True)) if is_stored else None
        problem = _stored_problem(layer, start, cell, stored, whole)
        if problem is not None:
            differing += 1
            found.add("archive", f"{_where(layer, key, start)} partition {part}", *problem)
    return differing


def compare_ledgers(
    themap: Map,
    partitions: Mapping[str, list[Partition]],
    ledgers: Mapping[str, dict[str, Any]],
    found: DifferenceLog,
    returned: frozenset[str] = frozenset(),
) -> None:
    """Compare the counts of the source partitions that each worker owns with its ledger.

    Only the least is known of a layer that has ``returned``: it counts on from the time
    when the map had it before.
    """
    for url, ledger in ledgers.items():
        for problem in ledger["problems"]:
            found.add("ledger", f"{url} balance", "sums that add up", problem)
        own: Counter[str] = Counter()
        doubt: Counter[str] = Counter()
        repeats = 0
        for source in themap.sources:
            for number, row in ledger["records"].get(source.topic, {}).items():
                partition = partitions[source.name][int(number)]
                own.update(partition.ledger)
                doubt.update(partition.doubt)
                repeats += partition.repeats_in_doubt
                for column in _RECORD_COLUMNS:
                    want = partition.ledger[f"records.{column}"]
                    where = f"{source.topic}[{number}] records.{column} at {url}"
                    _compare_count(where, want, row[column], found)
        for where, want, got in _counts(themap, own, ledger, returned):
            either_way = repeats if where.startswith(_OF_REPEATS) else 0
            _compare_count(
                f"{where} at {url}", want, got, found, doubt=doubt[where], either_way=either_way
            )
        for layer in themap.layers:
            if layer.name in returned:
                _compare_least(layer, own, ledger, found, url)


def _counts(
    themap: Map, own: Counter[str], ledger: dict[str, Any], returned: frozenset[str]
) -> Iterator[tuple[str, int, int]]:
    """Yield name, recomputed and served value of each count of a whole worker."""
    for layer in themap.layers:
        if layer.source is not None and layer.name not in returned:
            name = folded_as(layer)
            for column in _LAYER_COLUMNS:
                want = own[f"layer.{name}.{column}"]
                yield f"layer.{name}.{column}", want, ledger["layers"][name][column]
    # Contributions are decoded and classified too, one for each that a layer selects.
    contributed = sum(
        ledger["layers"][layer.name]["selected"]
        for layer in themap.layers
        if layer.merged or layer.finer is not None
    )
    yield "events.decoded", own["events.decoded"] + contributed, ledger["events"]["decoded"]
    for column in _EVENT_COLUMNS:
        if returned and column in ("classified", "unclassified"):
            continue
        more = contributed if column == "classified" else 0
        yield f"events.{column}", own[f"events.{column}"] + more, ledger["events"][column]
    for kind in ("unreadable", "malformed", "nulled"):
        reasons = {name.partition(".")[2] for name in own if name.startswith(f"{kind}.")}
        # Workers of earlier releases have no nulled values.
        served = ledger.get("nulled", {}) if kind == "nulled" else ledger["reasons"][kind]
        for reason in sorted((reasons | served.keys()) - {"contribution"}):
            name = f"{kind}.{reason}"
            yield name, own[name], served.get(reason, 0)


def _compare_least(
    layer: Layer, own: Counter[str], ledger: dict[str, Any], found: DifferenceLog, url: str
) -> None:
    name = folded_as(layer)
    for column in _LAYER_COLUMNS:
        want, got = own[f"layer.{name}.{column}"], ledger["layers"][name][column]
        if got < want:
            found.add("ledger", f"layer.{name}.{column} at {url}", f"{want} or more", str(got))


def _compare_count(
    where: str, want: int, got: int, found: DifferenceLog, *, doubt: int = 0, either_way: int = 0
) -> None:
    """Compare a count: ``doubt`` of either sign may be added, ``either_way`` both ways."""
    least, most = sorted((want, want + doubt))
    least, most = least - either_way, most + either_way
    if not least <= got <= most:
        found.add("ledger", where, f"{least} to {most}" if least < most else str(want), str(got))


def _read_row(layer: Layer, row: tuple[Any, ...]) -> tuple[Key, int, Cell | None, tuple[Any, ...]]:
    """Return key, window start and cell of a row, and its other columns."""
    keys = len(layer.key)
    key, start = row[:keys], row[keys]
    is_expected, events = row[keys + 1 : keys + 3]
    rest = row[keys + 3 :]
    cell = Cell({}, events) if is_expected else None
    for sums in sql.sums_of(layer):
        count = len(sums.columns)
        if cell is not None:
            cell.fields[sums.name] = read_sums(sums, rest[:count])
        rest = rest[count:]
    return key, start, cell, rest


def read_sums(sums: sql.Sums, columns: Sequence[Any]) -> FieldSums:
    """Return the accumulators in the columns of a field."""
    n, total, least, most, high, low, size = columns
    found = FieldSums(sums.is_float, n, least=least, most=most)
    if not sums.is_float:
        found.total, found.squares = int(total), (int(high) << 64) + int(low)
        return found
    found.total = _multiple(total, SCALE_BITS) << sql.SCALE_BITS
    found.magnitude = _multiple(size, SCALE_BITS) << sql.SCALE_BITS
    found.squares = _multiple(low, 2 * SCALE_BITS)
    found.squares += _multiple(high, 2 * SCALE_BITS) << (4 * sql.LARGE_BITS)
    return found


def _multiple(value: float, bits: int) -> int:
    """Return a float as a multiple of 2**-bits."""
    top, bottom = value.as_integer_ratio()
    return top << (bits + 1 - bottom.bit_length())


def _answer_problem(
    layer: Layer,
    start: int,
    cell: Cell | None,
    got: tuple[int, dict[str, Any]] | None,
    whole: Whole,
) -> tuple[object, object] | None:
    """Return the wanted and the found value, None if both are the same."""
    if cell is None or got is None:
        want = _measures(layer, cell) if cell is not None else None
        return want, got[1] if got is not None else None
    stop, measures = got
    if stop != window_end(layer, start):
        return f"window end {window_end(layer, start)}", f"window end {stop}"
    equal = all(
        measures[measure.name] is None
        if _is_before(start, whole.measure_ms(layer, measure.name))
        else equals(measures[measure.name], *measure_of(cell, measure))
        or (is_infinite(measures[measure.name]) and may_be_infinite(cell, measure))
        for measure in layer.measures
    )
    return None if equal else (_measures(layer, cell), measures)


def _is_before(start: int, whole_ms: int | None) -> bool:
    return whole_ms is not None and start < whole_ms


def _stored_problem(
    layer: Layer, start: int, cell: Cell | None, stored: dict[str, Any] | None, whole: Whole
) -> tuple[object, object] | None:
    if cell is None or stored is None:
        return _accumulated(cell) if cell is not None else None, stored
    known = [
        acc
        for acc in layer.accumulators
        if stored[acc.column] is not None or not _is_before(start, whole.column_ms(layer, acc))
    ]
    equal = (stored["events"] or 0) == cell.events and all(
        _stored_equals(known, cell, stored, name) for name in cell.fields
    )
    return None if equal else (_accumulated(cell), stored)


def _stored_equals(
    accumulators: Sequence[Accumulator], cell: Cell, stored: dict[str, Any], name: str
) -> bool:
    sums = cell.fields[name]
    for acc in accumulators:
        if acc.field != name:
            continue
        got = stored[acc.column]
        if acc.kind in ("min", "max"):
            want = sums.least if acc.kind == "min" else sums.most
            if got != want:
                return False
            continue
        if got is None:
            return False
        if acc.kind == "n":
            good = got == sums.n
        elif acc.kind == "sum":
            good = equals(got, sums.sum, sums.slack) or (is_infinite(got) and sums.may_overflow)
        elif acc.kind == "m2":
            want_m2 = sums.deviations if sums.n else Fraction(0)
            good = equals(got, want_m2, sums.deviations_slack) or (
                is_infinite(got) and sums.squares_may_overflow
            )
        else:  # both halves of the sum of squares; how it is split depends on chunks
            high, low = stored[f"sqhi_{name}"] or 0, stored[f"sqlo_{name}"] or 0
            good = (high << 64) + low == sums.square_sum
        if not good:
            return False
    return True


def _measures(layer: Layer, cell: Cell) -> dict[str, object]:
    return {measure.name: shown(measure_of(cell, measure)[0]) for measure in layer.measures}


def _accumulated(cell: Cell) -> dict[str, object]:
    parts: dict[str, object] = {"events": cell.events}
    for name, sums in cell.fields.items():
        parts |= {f"n_{name}": sums.n, f"sum_{name}": shown(sums.sum)}
        parts |= {f"min_{name}": sums.least, f"max_{name}": sums.most}
        parts |= {f"squares_{name}": shown(sums.square_sum)}
    return parts


def _where(layer: Layer, key: Key, start: int) -> str:
    named = ", ".join(f"{field.name}={value}" for field, value in zip(layer.key, key, strict=True))
    return f"{layer.name} window {start} key {named or 'none'}"


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name}={one}" for name, one in value.items())
    return str(value)
