"""Outcomes: why an event is not folded, or that it is classified, as SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from app.verify.cuts import Cuts
from app.verify.database import text
from app.verify.records import APPEND_TIME_MS_MIN
from app.verify.sql import both, either
from tables.model.layer import Layer, Source

KEY_BYTES_MAX = 1_024
LETTERED = ("missing", "key_too_long", "unclassified")
"""Reasons that depend on which layers the map had."""


def outcome_of(
    source: Source,
    layers: tuple[Layer, ...],
    cuts: Cuts,
    selected_by: Callable[[Layer], str],
    columns: Mapping[str, str],
) -> str:
    """Return why an event is not folded, or that it is classified; in this order.

    If the map may not have had a layer that decides, a letter does (``named``), or it is in doubt.
    ``selected_by`` returns whether a layer selects an event's type.
    """
    missing, long = [], []
    for layer in layers:
        selected = selected_by(layer)
        if cuts:
            named = f"coalesce(named IN ({', '.join(map(text, LETTERED[:2]))}), false)"
            selected = f"({selected} AND ({cuts.sure(layer)} OR {named}))"
        for field in layer.key:
            column = columns[field.name]
            missing.append(f"({selected} AND {column} IS NULL)")
            if field.type == "string":
                long.append(f"({selected} AND strlen({column}) > {KEY_BYTES_MAX})")
    unclassified = "WHEN kind = 0 THEN 'unclassified'"
    if cuts:
        may = either([f"({selected_by(one)} AND {possible(one, cuts, columns)})" for one in layers])
        sure = either([f"({selected_by(one)} AND {cuts.sure(one)})" for one in layers])
        # If such events have letters, one that has none is classified.
        doubtful = "true" if source.unclassified == "count" else "false"
        unclassified = (
            f"WHEN NOT {may} OR (NOT {sure} AND named IS NOT DISTINCT FROM 'unclassified') THEN"
            f" 'unclassified' WHEN NOT {sure} AND {doubtful} THEN 'doubtful'"
        )
    return (
        "CASE WHEN kind IS NULL THEN 'heartbeat'"
        f" WHEN appended >= {APPEND_TIME_MS_MIN}"
        f" AND time > appended + {source.future_skew_ms} THEN 'future'"
        f" WHEN {either(missing)} THEN 'missing' WHEN {either(long)} THEN 'key_too_long'"
        f" {unclassified} ELSE 'classified' END"
    )


def possible(layer: Layer, cuts: Cuts, columns: Mapping[str, str]) -> str:
    """Return whether the map may have had a layer at an event that is not set aside.

    With the layer an event without a key that it can use is set aside, and a record is never
    decoded again. So such an event was read before the cut.
    """
    if not cuts:
        return "true"
    usable = [f"{columns[field.name]} IS NOT NULL" for field in layer.key]
    usable += [
        f"strlen({columns[field.name]}) <= {KEY_BYTES_MAX}"
        for field in layer.key
        if field.type == "string"
    ]
    return both([cuts.possible(layer), *usable])
