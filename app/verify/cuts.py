"""Cuts: the offset of a partition's log at which a revision of the map got a base layer.

Workers report a time, not an offset: the layer is whole from M + 1 on, and M was the partition's
stream time. So the cut lies behind the record that moved the time to M, and not behind the one
that moved it beyond. Events between are in doubt, and either answer is right for them::

    records    ... time < M | M | ... time <= M ... | time > M | ...
    layer          absent         low - in doubt - high   has all
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from app.verify.errors import VerifyError
from app.verify.whole import Whole
from tables.model.layer import Layer

Times = Callable[[int], list[tuple[int, int | None, int | None]]]


@dataclasses.dataclass(slots=True)
class Cut:
    """A cut: at an offset from ``low`` to ``high``, which is None while the log is not beyond M.

    ``whole_ms`` is M + 1. ``is_reached`` says whether the log has reached M.
    """

    whole_ms: int
    low: int
    high: int | None = None
    is_reached: bool = False


class Cuts:
    """The cuts of the base layers of a source."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self._layers = layers
        self._known: Whole | None = None
        self._cuts: dict[str, dict[int, Cut]] = {}

    def __bool__(self) -> bool:
        return bool(self._cuts)

    def know(self, whole: Whole, firsts: list[int]) -> None:
        """Keep the times that workers report, and the first offset of each partition's log.

        For a merged layer workers report only the latest of all partitions, and nothing before it.

        Raises:
            VerifyError: they reported other times before.
        """
        if self._known is None:
            self._known = whole
            for layer in self._layers:
                found = whole.parts.get(layer.name, {})
                if layer.merged and found:
                    found = dict.fromkeys(range(len(firsts)), max(found.values()))
                if found:
                    self._cuts[layer.name] = {p: Cut(ms, firsts[p]) for p, ms in found.items()}
            return
        for layer in self._layers:
            if whole.parts.get(layer.name) != self._known.parts.get(layer.name):
                raise VerifyError(
                    f"cannot verify {layer.name}: the map that workers run changed meanwhile; want"
                    " the same from begin to end; start again"
                )

    def find(self, times: Times) -> None:
        """Find the cuts in the next records.

        ``times`` is called with M + 1, and returns, by partition, the first offsets of events that
        moved the time to M, and beyond it.
        """
        open_cuts = [
            (cut.whole_ms, layer.name, part)
            for layer in self._layers
            for part, cut in self._cuts.get(layer.name, {}).items()
            if cut.high is None
        ]
        merged = {layer.name for layer in self._layers if layer.merged}
        for whole_ms, name in sorted({cut[:2] for cut in open_cuts}):
            for part, reached, passed in times(whole_ms):
                if (whole_ms, name, part) in open_cuts:
                    cut = self._cuts[name][part]
                    cut.high = passed
                    if reached is None or cut.is_reached or name in merged:
                        continue
                    if passed is None or reached < passed:
                        cut.low, cut.is_reached = reached + 1, True

    def sure(self, layer: Layer) -> str:
        """Return whether the map surely had a layer at an event, in SQL."""
        return self._test(layer, lambda cut: cut.high)

    def possible(self, layer: Layer) -> str:
        """Return whether the map may have had a layer at an event, in SQL."""
        return self._test(layer, lambda cut: cut.low)

    def _test(self, layer: Layer, since: Callable[[Cut], int | None]) -> str:
        found = self._cuts.get(layer.name)
        if not found:
            return "true"
        return f"(CASE part {' '.join(_cases(found, since))} ELSE true END)"


def _cases(cuts: dict[int, Cut], since: Callable[[Cut], int | None]) -> Iterator[str]:
    for part, cut in cuts.items():
        offset = since(cut)
        yield f"WHEN {part} THEN " + ("false" if offset is None else f'"offset" >= {offset}')
