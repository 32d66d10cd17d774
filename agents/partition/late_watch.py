"""Late watch: warns when most events of a layer come too late, as after one clock that is ahead.

It warns too when stream time is in the first months of the epoch, as if times were seconds.

One event of the future, within the source's ``future_skew``, seals the windows of all others in its
partition. The protocol is right then, but the numbers lack these events.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping

from tables.called import called
from tables.model.window import SECONDS_IN_MS_MAX, time_text
from tables.state.input_plan import InputPlan

log = logging.getLogger(__name__)

SPAN_S = 60.0
"""Seconds over which events are counted."""

EVENTS_MIN = 10
"""Events that are too late, below which nothing is logged."""

Watched = tuple[str, int, str]
"""Topic, partition and layer."""


@dataclasses.dataclass(slots=True)
class _Span:
    begin_s: float
    too_late: int = 0
    folded: int = 0
    is_told: bool = False

    @property
    def is_mostly_late(self) -> bool:
        return self.too_late >= EVENTS_MIN and self.too_late > self.folded


class LateWatch:
    """Counts folded events and those that are too late, by layer and source partition.

    Attributes:
        episodes: by layer, how often most events began to come too late.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spans: dict[Watched, _Span] = {}
        self._in_seconds: set[str] = set()
        self.episodes: dict[str, int] = {}

    def count(
        self, plan: InputPlan, partition: int, counts: Mapping[str, int], stream_time_ms: int
    ) -> None:
        """Count the events of a delta's ledger; log the beginning of an episode."""
        if plan.finer is not None:
            return
        if 0 < stream_time_ms < SECONDS_IN_MS_MAX:
            self._log_seconds(plan.topic, partition, stream_time_ms)
        now_s = self._clock()
        for layer in plan.layers:
            too_late = counts.get(f"layer.{layer.name}.too_late", 0)
            folded = counts.get(f"layer.{layer.name}.folded", 0)
            if not too_late and not folded:
                continue
            watched = (plan.topic, partition, layer.declared_name)
            span = self._spans.get(watched)
            if span is None or now_s - span.begin_s >= SPAN_S:
                # An episode ends with a span that is not mostly late.
                goes_on = span is not None and span.is_told and span.is_mostly_late
                span = self._spans[watched] = _Span(now_s, is_told=goes_on)
            span.too_late += too_late
            span.folded += folded
            if span.is_mostly_late and not span.is_told:
                span.is_told = True
                self._begin(watched, span, stream_time_ms)

    def _begin(self, watched: Watched, span: _Span, stream_time_ms: int) -> None:
        topic, partition, layer = watched
        self.episodes[layer] = self.episodes.get(layer, 0) + 1
        log.warning(
            "most events of layer %s come too late in %s[%d]: %d of %d within a minute; its stream"
            " time is %s; if that is ahead of the clock, a producer's clock was: see"
            " `future_skew`, and `%s`",
            layer, topic, partition, span.too_late, span.too_late + span.folded,
            time_text(stream_time_ms), called("deadletters list --late"),
        )  # fmt: skip

    def _log_seconds(self, topic: str, partition: int, stream_time_ms: int) -> None:
        if topic not in self._in_seconds:
            self._in_seconds.add(topic)
            log.warning(
                "the events of %s[%d] are of %s; are these seconds instead of milliseconds?"
                ' If so, start over with `time_unit = "s"` in the source',
                topic, partition, time_text(stream_time_ms),
            )  # fmt: skip

    def forget(self, topic: str, partition: int) -> None:
        """Forget a partition that this worker has released."""
        gone = (topic, partition)
        self._spans = {one: span for one, span in self._spans.items() if one[:2] != gone}
