"""A map, and plans of queries over it."""

from __future__ import annotations

from typing import Any

from tables.model.layer import Map
from tables.query.cell_query import Limits
from tables.query.family import FamilyQuery, parse_family_query
from tables.query.planner import LayerFacts, plan
from tables.state.layer_table import NEVER_ENDS_MS
from tests.support.common import DAY_MS, HOUR_MS, small_map

MAP = small_map()
FINAL = LayerFacts(sealed_ms=NEVER_ENDS_MS, closed_ms=NEVER_ENDS_MS)


def ask(themap: Map = MAP, start: int = 0, stop: int = DAY_MS, **words: str) -> FamilyQuery:
    """Return a request to the family of hours; ``key_carrier`` stands for ``key.carrier``."""
    given = [(name.replace("_", ".", 1) if name[:3] in ("key", "pre") else name, text)
             for name, text in words.items()]  # fmt: skip
    return parse_family_query(
        themap, "hour", [("from", str(start)), ("to", str(stop)), *given], Limits()
    )


def read(query: FamilyQuery, cells_max: int = 10**9, **facts: LayerFacts) -> list[tuple[Any, ...]]:
    """Return layer, start and end of each segment, in hours."""
    planned = plan(query, facts, cells_max)
    return [(s.name, s.from_ms / HOUR_MS, s.to_ms / HOUR_MS) for s in planned.segments]
