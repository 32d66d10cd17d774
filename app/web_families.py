"""Families over HTTP: the request's query, and the answer as JSON with what it is and cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from agents.reader import FamilyAnswer
from tables.answer import row_end
from tables.cell import measures_of
from tables.family import FamilyQuery, family_of
from tables.layer import Map
from tables.planner import Plan
from tables.query import encode_cursor, exact_json, page_after
from tables.table import NEVER_MS


def describe_families(themap: Map) -> list[dict[str, Any]]:
    """Return the families of a map: what can be asked of each."""
    found = []
    for base in (layer for layer in themap.layers if layer.finer is None):
        family = family_of(themap, base.name)
        found.append(
            {
                "name": family.name,
                "layers": [layer.name for layer in family.layers],
                "key": [field.name for field in base.key],
                "measures": [measure.name for measure in base.measures],
                "window": str(base.window),
            }
        )
    return found


def describe_plan(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON."""
    segments = [
        {
            "layer": segment.name,
            "from": segment.from_ms,
            "to": segment.to_ms,
            "windows": segment.windows,
            "cells": segment.cells,
        }
        for segment in plan.segments
    ]
    return {"exactness": plan.exactness, "cells": plan.cells, "segments": segments}


def describe_answer(
    themap: Map, query: FamilyQuery, answer: FamilyAnswer, now_ms: int
) -> dict[str, Any]:
    """Return one page of an answer as JSON."""
    rows, cursor = page_after(query.rows, answer.rows, query.after, query.limit)
    topic = themap.source(query.family.base.source or "").topic
    return {
        "family": query.family.name,
        "map_revision": themap.revision,
        "exactness": answer.exactness,
        "as_of": {topic: answer.as_of},
        "watermark_ms": known_ms(answer.watermark_ms),
        "data_age_ms": age_ms(answer, now_ms),
        "cost": dataclasses.asdict(answer.cost),
        "plan": describe_plan(answer.plan),
        "cells": list(_cells(query, rows)),
        "cursor": None if cursor is None else encode_cursor(themap, query.rows, cursor),
    }


def age_ms(answer: FamilyAnswer, now_ms: int) -> int | None:
    """Return how old an answer's data is, None where that is not known."""
    return None if answer.fresh_ms == NEVER_MS else max(0, now_ms - answer.fresh_ms)


def known_ms(time_ms: int) -> int | None:
    """Return a time, None where there is none yet."""
    return None if time_ms == NEVER_MS else time_ms


def _cells(query: FamilyQuery, rows: Any) -> Iterable[dict[str, Any]]:
    measures = measures_of(query.rows, rows)
    for row, measure in zip(rows.iter_rows(named=True), measures, strict=True):
        yield {
            "key": {field.name: row[field.column] for field in query.rows.key},
            "window_start": row["window_start"],
            "window_end": row_end(query, row["window_start"]),
            "measures": {name: exact_json(value) for name, value in measure.items()},
        }
