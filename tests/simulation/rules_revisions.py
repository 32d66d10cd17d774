"""The rules that revisions of the map rest on, each left out; and rule 17, duplicates."""

from __future__ import annotations

from typing import Any

import polars as pl

from agents.fold.dedupe import Deduper
from tables.model.layer import Layer
from tables.model.window import NEVER_MS
from tables.state import cell, small_merge
from tables.state.id_table import IdTable
from tables.state.journal import Claim, Delta
from tables.state.layer_table import LayerTable
from tables.state.partition_state import PartitionState
from tests.simulation.rules import Patch, rule

_find = Deduper.find
_keep = IdTable.keep
_keep_only = PartitionState._keep_only


def _nothing(*_: Any) -> None:
    """Do nothing."""


@rule(1, "a sealed window is closed", quick="impure", seed=104)
def closed_is_not_below_the_floor() -> list[Patch]:
    """Let the watermark follow from stream time and the newest revision alone."""

    def closed_ms(self: PartitionState, layer: Layer) -> int:
        if self.plan.finer is not None:
            return self._least_closed_ms()
        return max(self.meta.stream_time_ms - layer.max_out_of_orderness_ms, NEVER_MS)

    return [(PartitionState, "closed_ms", closed_ms)]


@rule(1, "a floor stays while revisions lack the layer")
def floor_of_a_layer_that_is_gone() -> list[Patch]:
    """Forget it with the layer."""

    def keep_only(self: PartitionState, claim: Claim) -> None:
        _keep_only(self, claim)
        for name in self.meta.floors.keys() - (claim.layers or {}).keys():
            del self.meta.floors[name]

    return [(PartitionState, "_keep_only", keep_only)]


@rule(3, "a claim empties the layers that it does not name", quick="impure", seed=49)
def claims_empty_layers() -> list[Patch]:
    """Keep the layers of the reader's own map."""
    return [(LayerTable, "clear", _nothing)]


@rule(
    3,
    "a base layer has all events only after the claim that named it first",
    quick="impure",
    seed=2,
)
def layers_begin() -> list[Patch]:
    """Take every layer as if it had always been there."""
    return [(PartitionState, "_begin_layers", _nothing)]


@rule(6, "a store takes only states of its worker's own map", quick="impure", seed=13)
def store_of_own_map() -> list[Patch]:
    """Save whatever a worker could read."""
    return [(PartitionState, "is_of_own_map", True)]


@rule(17, "an event whose id is remembered is a duplicate", quick="pure")
def duplicates() -> list[Patch]:
    """Take none for one."""

    def find(
        self: Deduper, events: pl.DataFrame, stream_time_ms: int, ids: IdTable
    ) -> tuple[list[int], pl.DataFrame]:
        _, rows = _find(self, events, stream_time_ms, ids)
        return [], rows

    return [(Deduper, "find", find)]


@rule(17, "a claim without ids forgets them", quick="impure", seed=33)
def claims_forget_ids() -> list[Patch]:
    """Keep those that the reader's own map remembers."""

    def keep(self: IdTable, ids: int) -> None:
        if ids:
            _keep(self, ids)

    # None that are kept would bring back none.
    return [(IdTable, "clear", _nothing), (IdTable, "keep", keep)]


@rule(17, "more ids bring back none that was forgotten", quick="impure", seed=94)
def forgotten_ids_stay_so() -> list[Patch]:
    """Let ids that lie there be remembered again."""
    return [(IdTable, "keep", _nothing)]


@rule(17, "ids go by a total, which may be repeated")
def ids_go_by_a_total() -> list[Patch]:
    """Take the total for a count."""

    def forget_ids(self: PartitionState, delta: Delta) -> None:
        gone = delta.ids_gone - self.meta.ids_gone
        if gone > 0 and self.ids is not None:
            self.ids.forget_oldest(delta.ids_gone)
        self.meta.ids_gone = max(self.meta.ids_gone, delta.ids_gone)

    return [(PartitionState, "_forget_ids", forget_ids)]


@rule(18, "an accumulator begins with the claim that names it first", quick="impure", seed=2)
def columns_begin() -> list[Patch]:
    """Take every accumulator as if it had always been there."""
    return [(PartitionState, "_begin_column", _nothing)]


@rule(18, "null is contagious when cells merge", quick="impure", seed=8)
def null_is_contagious() -> list[Patch]:
    """Merge the known values as if they were all."""

    def none_of_frame(*_: Any) -> bool:
        return False

    def none_of_few(_: Any, values: list[Any]) -> bool:
        values[0] = [value for value in values[0] if value is not None]
        return False

    return [(cell, "_has_unknown", none_of_frame), (small_merge, "_has_unknown", none_of_few)]
