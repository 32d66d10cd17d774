"""Rows and ledgers compared: what was recomputed with what workers and archive say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from app.verify.archive import Archived, Stored
from app.verify.cells import Cell, equals, measure_of
from app.verify.partition import Partition, Place, folded_as
from app.verify.report import Difference, LayerReport
from app.verify.rows import Rows
from app.verify.windows import window_end
from client.query import Cell as Answered
from tables.layer import Layer, Map

_RECORD_COLUMNS = (
    "with_events", "heartbeat", "tombstone", "empty", "oversized", "unreadable", "gap",
)  # fmt: skip
_EVENT_COLUMNS = ("malformed", "future", "duplicate", "unclassified", "classified")
_LAYER_COLUMNS = ("selected", "folded", "filtered", "too_late")


class Found:
    """Differences: all are counted, the first are kept."""

    def __init__(self, kept_max: int) -> None:
        self._kept_max = kept_max
        self.count = 0
        self.kept: list[Difference] = []

    def add(self, what: str, where: str, want: object, got: object) -> None:
        """Take one."""
        self.take(Difference(what, where, _text(want), _text(got)))

    def take(self, difference: Difference) -> None:
        """Take one that is made."""
        self.count += 1
        if len(self.kept) < self._kept_max:
            self.kept.append(difference)


def compare_answers(
    layer: Layer,
    rows: Rows,
    answers: Mapping[str, Mapping[Place, Answered]],
    found: Found,
    now_ms: int,
) -> LayerReport:
    """Compare a layer's rows with what each worker answers.

    A row whose window is closed everywhere is archived, so every worker must answer with it. One
    that is open is answered by the worker that has it, others may have an older version of it.
    """
    report = LayerReport(layer.name, expected=len(rows))
    report.http = len({place for answer in answers.values() for place in answer})
    for place in rows.keys() | {place for answer in answers.values() for place in answer}:
        row = rows.get(place)
        got = {url: answer[place] for url, answer in answers.items() if place in answer}
        if row is not None and not got and expired(layer, place, now_ms):
            continue
        asked: Iterable[str] = answers
        if row is None or len(row.closed) < len(row.parts) or expired(layer, place, now_ms):
            newest = max(got, key=lambda url: got[url].version, default=None)
            asked = [newest] if newest is not None else list(answers)[:1]
        cell = row.whole(layer) if row is not None else None
        for url in asked:
            problem = _answer_problem(layer, place, cell, got.get(url))
            if problem is not None:
                report.differing += 1
                found.add("http", f"{_where(layer, place)} at {url}", *problem)
                break
    return report


def compare_archive(
    layer: Layer, rows: Rows, archived: Archived, found: Found, now_ms: int, *, early: bool
) -> int:
    """Compare a layer's rows with the archived ones, part by part; return how many differ.

    A part whose window is closed has to be there, or any where open windows are sent ``early``.
    Another one may be, with the value that it has.
    """
    differing = 0
    parts = {
        (place, number): (cell, early or number in row.closed)
        for place, row in rows.items()
        for number, cell in row.parts.items()
    }
    for where in parts.keys() | archived.keys():
        place, number = where
        cell, sent = parts.get(where, (None, True))
        stored = archived.get(where)
        if stored is None and (not sent or expired(layer, place, now_ms)):
            continue
        problem = _stored_problem(layer, cell, stored)
        if problem is not None:
            differing += 1
            found.add("archive", f"{_where(layer, place)} partition {number}", *problem)
    return differing


def compare_ledgers(
    themap: Map,
    partitions: Mapping[str, list[Partition]],
    ledgers: Mapping[str, dict[str, Any]],
    found: Found,
) -> None:
    """Compare the counts of the source partitions that each worker owns with its ledger."""
    for url, ledger in ledgers.items():
        for problem in ledger["problems"]:
            found.add("ledger", f"{url} balance", "sums that add up", problem)
        own: Counter[str] = Counter()
        for source in themap.sources:
            for number, row in ledger["records"].get(source.topic, {}).items():
                partition = partitions[source.name][int(number)]
                own.update(partition.ledger)
                for column in _RECORD_COLUMNS:
                    want = partition.ledger[f"records.{column}"]
                    where = f"{source.topic}[{number}] records.{column} at {url}"
                    _compare_count(where, want, row[column], found)
        for where, want, got in _counts(themap, own, ledger):
            _compare_count(f"{where} at {url}", want, got, found)


def _counts(
    themap: Map, own: Counter[str], ledger: dict[str, Any]
) -> Iterator[tuple[str, int, int]]:
    """Yield name, recomputed and served count of what is served for a whole worker."""
    for layer in themap.layers:
        if layer.source is not None:
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
        more = contributed if column == "classified" else 0
        yield f"events.{column}", own[f"events.{column}"] + more, ledger["events"][column]
    for kind in ("unreadable", "malformed"):
        reasons = {name.partition(".")[2] for name in own if name.startswith(f"{kind}.")}
        served = ledger["reasons"][kind]
        for reason in (reasons | served.keys()) - {"contribution"}:
            name = f"{kind}.{reason}"
            yield name, own[name], served.get(reason, 0)


def _compare_count(where: str, want: int, got: int, found: Found) -> None:
    if want != got:
        found.add("ledger", where, str(want), str(got))


def expired(layer: Layer, place: Place, now_ms: int) -> bool:
    """Tell whether a row may be gone from the archive."""
    ttl_ms = layer.archive_ttl_ms
    return ttl_ms > 0 and window_end(layer, place[1]) + ttl_ms <= now_ms


def _answer_problem(
    layer: Layer, place: Place, cell: Cell | None, got: Answered | None
) -> tuple[object, object] | None:
    """Return what was wanted and got, None where both are the same."""
    if cell is None or got is None:
        want = _measures(layer, cell) if cell is not None else None
        return want, got.measures if got is not None else None
    if got.window_end != window_end(layer, place[1]):
        return f"window end {window_end(layer, place[1])}", f"window end {got.window_end}"
    same = got.measures.keys() == {measure.name for measure in layer.measures} and all(
        equals(got.measures[measure.name], *measure_of(cell, measure)) for measure in layer.measures
    )
    return None if same else (_measures(layer, cell), got.measures)


def _stored_problem(
    layer: Layer, cell: Cell | None, stored: Stored | None
) -> tuple[object, object] | None:
    if cell is None or stored is None:
        return _accumulated(cell) if cell is not None else None, stored
    same = (stored["events"] or 0) == cell.events and all(
        _stored_equals(layer, cell, stored, name) for name in cell.fields
    )
    return None if same else (_accumulated(cell), stored)


def _stored_equals(layer: Layer, cell: Cell, stored: Stored, name: str) -> bool:
    sums = cell.fields[name]
    for acc in layer.accumulators:
        if acc.field != name:
            continue
        got = stored[acc.column]
        if acc.kind in ("min", "max"):
            want = sums.least if acc.kind == "min" else sums.most
            if got != want:
                return False
            continue
        if got is None:  # the column came with a later revision
            got = 0.0 if acc.type == "float" and acc.kind != "n" else 0
        if acc.kind == "n":
            good = got == sums.n
        elif acc.kind == "sum":
            good = equals(got, sums.sum, sums.slack)
        elif acc.kind == "m2":
            want_m2 = sums.deviations if sums.n else Fraction(0)
            good = equals(got, want_m2, sums.deviations_slack)
        else:  # both halves of the sum of squares; how it is split depends on chunks
            high, low = stored[f"sqhi_{name}"] or 0, stored[f"sqlo_{name}"] or 0
            good = (high << 64) + low == sums.square_sum
        if not good:
            return False
    return True


def _measures(layer: Layer, cell: Cell) -> dict[str, object]:
    return {measure.name: _shown(measure_of(cell, measure)[0]) for measure in layer.measures}


def _accumulated(cell: Cell) -> dict[str, object]:
    shown: dict[str, object] = {"events": cell.events}
    for name, sums in cell.fields.items():
        shown |= {f"n_{name}": sums.n, f"sum_{name}": _shown(sums.sum)}
        shown |= {f"min_{name}": sums.least, f"max_{name}": sums.most}
        shown |= {f"squares_{name}": _shown(sums.square_sum)}
    return shown


def _shown(value: object) -> object:
    return float(value) if isinstance(value, Fraction) else value


def _where(layer: Layer, place: Place) -> str:
    key = ", ".join(
        f"{field.name}={value}" for field, value in zip(layer.key, place[0], strict=True)
    )
    return f"{layer.name} window {place[1]} key {key or 'none'}"


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name}={one}" for name, one in value.items())
    return str(value)
