"""Whole: from when on the windows of a layer have all events, and of each measure.

A map may get a layer later, or a layer a measure. Earlier events are gone by then: such windows
are left out, or have null, wherever they leave a state; never half a value. From when on they are
whole is known by column: ``events``, which every layer has, stands for the layer itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from tables.archive.protocol import CellRange
from tables.measures.registry import stored_for
from tables.model.errors import QueryError
from tables.model.layer import Layer
from tables.model.window import NEVER_ENDS_MS, NEVER_MS


def check_began(layer: Layer, cells: CellRange, began_ms: int) -> None:
    """Refuse a range that begins before the map had the layer.

    Raises:
        QueryError: it does.
    """
    if cells.from_ms < began_ms < NEVER_ENDS_MS:
        raise QueryError(
            f"cannot read cells of {layer.name}: the map has had it only since {began_ms} of the"
            f" events' time; got {cells.from_ms}; want a range from"
            f" {layer.window.first_start(began_ms)} on"
        )


def later_measures(
    layer: Layer, whole: Mapping[str, int], from_ms: int = NEVER_MS
) -> dict[str, int | None]:
    """Return, by measure, from when on it is whole, if that is after the start of a range.

    The time is None while it is not known.
    """
    cells_ms = whole.get("events", NEVER_MS)
    found: dict[str, int | None] = {}
    for measure in layer.measures:
        columns = (whole.get(name, NEVER_MS) for name in stored_for(layer, measure))
        whole_ms = max(cells_ms, *columns)
        if whole_ms > from_ms:
            found[measure.name] = whole_ms if whole_ms < NEVER_ENDS_MS else None
    return found


def described(layer: Layer, whole: Mapping[str, int]) -> dict[str, int | None]:
    """Return a state's word on a layer: by measure, from when on it is whole, if not ever since.

    ``cells`` stands for the layer itself; a time is None while it is not known.
    """
    told = {acc.column: whole.get(acc.column, NEVER_ENDS_MS) for acc in layer.accumulators}
    found: dict[str, int | None] = {}
    if (cells_ms := told.get("events", NEVER_MS)) > NEVER_MS:
        found["cells"] = cells_ms if cells_ms < NEVER_ENDS_MS else None
    return found | later_measures(layer, told)
