"""Late watch: warns when most events of a layer come too late, as after one clock that is ahead.

It warns too of times that are likely of another unit: when stream time is in the first months of
the epoch, as if times were seconds, and when most events are refused as out of range.

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
"""Events that are too late, or refused, below which nothing is logged."""

OUT_OF_RANGE = "malformed.out_of_range"
"""The column of the ledger that counts events with times too large for their unit."""

Watched = tuple[str, int, str]
"""Topic, partition, and the layer for which events are too late, or ``OUT_OF_RANGE``."""


@dataclasses.dataclass(slots=True)
class _Span:
    begin_s: float
    bad: int = 0
    good: int = 0
    is_told: bool = False

    @property
    def is_mostly_bad(self) -> bool:
        return self.bad >= EVENTS_MIN and self.bad > self.good


class LateWatch:
    """Counts folded events and those that are too late, by layer and source partition.

    Attributes:
        episodes: by layer, how often most events began to come too late.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spans: dict[Watched, _Span] = {}
        self._in_seconds: dict[str, str] = {}
        self.episodes: dict[str, int] = {}

    def count(
        self, plan: InputPlan, partition: int, counts: Mapping[str, int], stream_time_ms: int
    ) -> None:
        """Count the events of a delta's ledger; log the beginning of an episode."""
        if plan.finer is not None:
            return
        if 0 < stream_time_ms < SECONDS_IN_MS_MAX:
            self._log_seconds(plan.topic, partition, stream_time_ms)
        for layer in plan.layers:
            too_late = counts.get(f"layer.{layer.name}.too_late", 0)
            folded = counts.get(f"layer.{layer.name}.folded", 0)
            watched = (plan.topic, partition, layer.declared_name)
            if span := self._begun(watched, too_late, folded):
                self._log_late(watched, span, stream_time_ms)
        refused, decoded = counts.get(OUT_OF_RANGE, 0), counts.get("events.decoded", 0)
        watched = (plan.topic, partition, OUT_OF_RANGE)
        if self._begun(watched, refused, decoded - refused):
            log.warning("%s", self._refusals(watched))

    def warnings(self) -> list[str]:
        """Return a sentence for each topic or partition whose times are likely of another unit."""
        refused = [
            self._refusals(watched)
            for watched, span in self._spans.items()
            if watched[2] == OUT_OF_RANGE and span.is_mostly_bad
        ]
        return [*self._in_seconds.values(), *refused]

    def _begun(self, watched: Watched, bad: int, good: int) -> _Span | None:
        """Count events; return their span if with it an episode begins."""
        if not bad and not good:
            return None
        now_s, span = self._clock(), self._spans.get(watched)
        if span is None or now_s - span.begin_s >= SPAN_S:
            # An episode ends with a span that is not mostly bad.
            goes_on = span is not None and span.is_told and span.is_mostly_bad
            span = self._spans[watched] = _Span(now_s, is_told=goes_on)
        span.bad += bad
        span.good += good
        if span.is_told or not span.is_mostly_bad:
            return None
        span.is_told = True
        return span

    def _log_late(self, watched: Watched, span: _Span, stream_time_ms: int) -> None:
        topic, partition, layer = watched
        self.episodes[layer] = self.episodes.get(layer, 0) + 1
        log.warning(
            "most events of layer %s come too late in %s[%d]: %d of %d within a minute; its stream"
            " time is %s; if that is ahead of the clock, a producer's clock was: see"
            " `future_skew`, and `%s`",
            layer, topic, partition, span.bad, span.bad + span.good,
            time_text(stream_time_ms), called("deadletters list --late"),
        )  # fmt: skip

    def _log_seconds(self, topic: str, partition: int, stream_time_ms: int) -> None:
        if topic not in self._in_seconds:
            self._in_seconds[topic] = (
                f"the events of {topic}[{partition}] are of {time_text(stream_time_ms)}; are these"
                ' seconds instead of milliseconds? If so, start over with `time_unit = "s"` in the'
                " source"
            )
            log.warning("%s", self._in_seconds[topic])

    def _refusals(self, watched: Watched) -> str:
        (topic, partition, _), span = watched, self._spans[watched]
        return (
            f"most events of {topic}[{partition}] are refused as out_of_range: {span.bad} of"
            f" {span.bad + span.good} within a minute; do their times have the source's"
            f" `time_unit`? See `{called('deadletters list')}`"
        )

    def forget(self, topic: str, partition: int) -> None:
        """Forget a partition that this worker has released."""
        gone = (topic, partition)
        self._spans = {one: span for one, span in self._spans.items() if one[:2] != gone}
