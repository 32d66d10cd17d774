"""Own report: the outcome of all events of a trial, by the worker's ledger, as lines to read."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from urllib.parse import quote

from app.demo.own_events import Tried
from app.load.event_check import refusal_lines, type_texts
from tables.called import called
from tables.model.layer import COMBINER_SUFFIX, Layer, Map
from tables.model.window import time_text

_UNITS_MS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000))


def outcome_lines(themap: Map, tried: Tried) -> list[str]:
    """Return the outcome of the events, and a remedy for those that are on no layer."""
    ledger = tried.status.ledger
    records = ledger["records"][tried.check.source.topic].values()
    read = sum(row["read"] for row in records)
    lines = [f"read {read:,} events of {tried.check.source.topic}"]
    for layer in themap.base_layers(tried.check.source.name):
        row = _layer_row(ledger["layers"], layer)
        text = f"  {row['folded']:,} folded into {layer.name}"
        if row["filtered"]:
            text += f", {row['filtered']:,} left out by its where"
        if row["too_late"]:
            text += f", {row['too_late']:,} too late"
        lines.append(text)
    if ledger["events"]["duplicate"]:
        lines.append(f"  {ledger['events']['duplicate']:,} dropped, as their id came before")
    lines += _refused(tried)
    lines += _unclassified(themap, tried)
    lines += _late(themap, tried)
    lines += [f"  hint: {tried.check.hint}"] if tried.check.hint else []
    lines += [f"  the ledger does not balance: {problem}" for problem in ledger["problems"]]
    return lines


def command_lines(themap: Map, tried: Tried) -> list[str]:
    """Return the commands that show more."""
    check = tried.check
    layers = reached_layers(themap, check.source.name)
    lines = [f"{layer.name}: {_query(layer, tried)}" for layer in layers]
    if layers and check.first_ms is not None:
        first, last = span_ms(layers[0], tried)
        query = f"from={first}&to={last}"
        address = f"{tried.url}/v1/layers/{quote(layers[0].name)}/cells?{query}"
        lines.append(f"over HTTP: curl {shlex.quote(address)}")
    map_file = shlex.quote(str(tried.map_file))
    more = f"{called('produce')} {shlex.quote(check.source.topic)} FILE --map {map_file}"
    return [
        *lines,
        f"all routes: {tried.url}/docs",
        f"more events: {more} --brokers {tried.brokers}",
    ]


def reached_layers(themap: Map, source: str) -> list[Layer]:
    """Return the layers that a source's events get to, finer ones before those made of them."""
    found = list(themap.base_layers(source))
    for layer in found:
        found += themap.coarser(layer.name)
    return found


def span_ms(layer: Layer, tried: Tried) -> tuple[int, int]:
    """Return the range of a layer's windows that hold all events; there is one at least."""
    first, last = tried.check.first_ms, tried.check.last_ms
    assert first is not None
    assert last is not None
    return layer.window.start(first), layer.window.end(layer.window.start(last))


def _query(layer: Layer, tried: Tried) -> str:
    if tried.check.first_ms is None:
        return "no event can be used"
    first, last = span_ms(layer, tried)
    url = "" if tried.url.endswith(":6066") else f" --url {tried.url}"
    return f"{called('query')} {layer.name} --from {_short(first)} --to {_short(last)}{url}"


def _short(time_ms: int) -> str:
    """Return a time as the query command reads it, as short as it can be."""
    return time_text(time_ms).removesuffix("T00:00:00Z")


def _layer_row(rows: dict[str, dict[str, int]], layer: Layer) -> dict[str, int]:
    """Return the counts of a base layer's events: of its combiner, if it is merged."""
    return rows[f"{layer.name}{COMBINER_SUFFIX}" if layer.merged else layer.name]


def _refused(tried: Tried) -> Iterator[str]:
    ledger = tried.status.ledger
    unusable = {name: count for one in ledger["reasons"].values() for name, count in one.items()}
    if future := ledger["events"]["future"]:
        unusable["future"] = future
    if unusable:
        yield "  refused: " + ", ".join(f"{count:,} {name}" for name, count in unusable.items())
        yield from (f"  {line}" for line in refusal_lines(tried.check))


def _unclassified(themap: Map, tried: Tried) -> Iterator[str]:
    count = tried.status.ledger["events"]["unclassified"]
    if count:
        layers = themap.base_layers(tried.check.source.name)
        patterns = sorted({pattern for layer in layers for pattern in layer.events})
        yield f"  {count:,} of types that no layer selects: {type_texts(tried.check)}"
        yield f"    the layers select {', '.join(patterns)}; add a type to a layer's events"


def _late(themap: Map, tried: Tried) -> Iterator[str]:
    """Yield the allowance that would include late events: one as large as the disorder."""
    rows = tried.status.ledger["layers"]
    layers = themap.base_layers(tried.check.source.name)
    late = [layer.name for layer in layers if _layer_row(rows, layer)["too_late"]]
    if late:
        yield (
            f"  the file is out of order by up to {duration(tried.check.disorder_ms)}; to include"
            f' late events, set max_out_of_orderness = "{duration(tried.check.disorder_ms)}"'
            f" in {', '.join(late)}, or sort the file by time"
        )


def duration(length_ms: int) -> str:
    """Return the shortest duration of a map that is at least ``length_ms`` and near it."""
    for unit, unit_ms in _UNITS_MS:
        count = math.ceil(length_ms / unit_ms)
        # Rounded up by a tenth at most.
        if length_ms >= unit_ms and count * unit_ms <= length_ms * 1.1:
            return f"{count}{unit}"
    return f"{length_ms}ms"
