"""The watch: asks dependencies now and then whether they answer, and partitions whether they move.

Kafka is asked for the end of each owned partition's log, over the connections that records come by.
A partition whose log grows while its owner stands is stuck, whatever the reason: it is claimed
again, and counted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping

from aiokafka.errors import KafkaError

from agents.decode.schemas import Schemas
from agents.outage import Outage
from agents.partition.owners import PartitionManager
from agents.tasks import within
from app.config.settings import Settings
from app.health.backpressure import Pressure
from app.host.background import Background, Work
from app.host.floods import FloodFilter, tame
from app.kafka.transport import Transport
from tables.archive.protocol import Archive
from tables.model.errors import TreasureMapError
from tables.model.topic_partition import TopicPartition

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""The time between two questions to one dependency."""

ANSWER_S_MAX = 5.0
"""How long an answer may take; a broker that stops for a collection of garbage takes a second."""


ASK = "ask"
"""The kind of attempt that a question is; see :class:`agents.outage.Outage`."""


@dataclasses.dataclass(slots=True)
class Standing:
    """An owner that has not reached the end of its log: its offset, since when, until when."""

    position: int
    end: int
    since_s: float
    due_s: float
    is_stuck: bool = False


class Progress:
    """The partitions that stand although their log grows.

    ``claim_again`` is called with topic, partition and reason for one that stands longer than
    ``stuck_after_s``, and again after as long.

    Attributes:
        stuck_total: how often a partition was claimed again.
    """

    def __init__(
        self,
        stuck_after_s: float,
        claim_again: Callable[[str, int, str], None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stuck_after_s = stuck_after_s
        self._claim_again = claim_again
        self._clock_s = clock_s
        self._standing: dict[TopicPartition, Standing] = {}
        self.stuck_total = 0

    def look(
        self,
        positions: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        restoring: Collection[TopicPartition] = (),
    ) -> None:
        """Compare owners' next offsets with the ends of their logs.

        The record of a partition that is being claimed again stays for its next owner.
        """
        now_s = self._clock_s()
        self.excuse(but=lambda tp: tp in positions or tp in restoring)
        for tp, position in positions.items():
            last, log_end = self._standing.get(tp), ends.get(tp, position)
            if position >= log_end:
                self._standing.pop(tp, None)
            elif last is None or last.position != position:
                self._standing[tp] = Standing(position, log_end, now_s, now_s + self._stuck_after_s)
            else:
                last.end = log_end
                if now_s >= last.due_s:
                    last.is_stuck, last.due_s = True, now_s + self._stuck_after_s
                    self.stuck_total += 1
                    self._claim_again(*tp, f"it {self._words(last)}")

    def excuse(self, *, but: Callable[[TopicPartition], bool] = lambda _: False) -> None:
        """Forget how long partitions have stood: there is a reason, which is reported elsewhere."""
        self._standing = {tp: standing for tp, standing in self._standing.items() if but(tp)}

    def stuck(self) -> dict[TopicPartition, str]:
        """Return the stuck partitions, each with its offset and time, in words."""
        return {
            tp: self._words(standing)
            for tp, standing in sorted(self._standing.items())
            if standing.is_stuck
        }

    def reasons(self) -> Iterator[str]:
        """Say which partitions are stuck, for readiness."""
        for (topic, partition), words in self.stuck().items():
            yield f"{topic}[{partition}] {words}"

    def _words(self, standing: Standing) -> str:
        stood_s = self._clock_s() - standing.since_s
        return (
            f"stands at offset {standing.position} for {stood_s:.0f} s "
            f"while its log grows to {standing.end}"
        )


@dataclasses.dataclass(slots=True, frozen=True)
class Question:
    """The question to one dependency, and the functions that get its outcome."""

    ask: Work
    outage: Outage


class Watch(Background):
    """Asks each of some dependencies, beside each other, for as long as the worker runs.

    Now and then ``floods`` shows the lines that it holds back; ``failed`` gets errors
    that no dependency should raise.
    """

    def __init__(
        self,
        progress: Progress,
        questions: list[Question],
        floods: FloodFilter,
        failed: Callable[[BaseException], None],
    ) -> None:
        super().__init__(failed, *(functools.partial(self._ask, one) for one in questions))
        self.progress = progress
        self.questions = questions
        self.floods = floods

    async def _ask(self, question: Question) -> None:
        while True:
            try:
                await within(ANSWER_S_MAX, question.ask())
            except (TreasureMapError, KafkaError, TimeoutError) as error:
                question.outage.failed(error, ASK)
            else:
                question.outage.answered(ASK)
            self.floods.show_last()
            await asyncio.sleep(LOOK_S)


def ask_kafka(
    progress: Progress,
    positions: Callable[[], Mapping[TopicPartition, int]],
    restoring: Callable[[], Collection[TopicPartition]],
    ends: Callable[[Iterable[TopicPartition]], Awaitable[Mapping[TopicPartition, int]]],
    is_paused: Callable[[str], bool],
) -> Work:
    """Return the question to Kafka: the ends of the logs that this worker should follow.

    ``restoring`` returns the partitions that are to have an owner here. Partitions of a topic whose
    input ``is_paused`` may stand.
    """

    async def ask() -> None:
        asked = set(positions())
        try:
            found = await ends(asked)
        except BaseException:
            # Nothing can move while nothing answers, and then it needs a while.
            progress.excuse()
            raise
        now = positions().items()
        moving = {tp: at for tp, at in now if tp in asked and not is_paused(tp[0])}
        progress.look(moving, found, restoring())

    return ask


def watch_of(
    settings: Settings,
    owners: PartitionManager,
    transport: Transport,
    pressure: Pressure,
    archive: Archive,
    *,
    schemas: Schemas | None = None,
) -> Watch:
    """Return the watch over Kafka, the archive and the progress of partitions.

    Sources may stand while the registry of ``schemas`` is away.
    """

    def positions() -> dict[TopicPartition, int]:
        found = {(owner.plan.topic, owner.partition): owner.position for owner in owners.each()}
        if found:
            # Measured here too, so that a pause ends although no more input comes.
            pressure.admits_sources()
        return found

    def is_paused(topic: str) -> bool:
        is_source = owners.plans[topic].source is not None
        if is_source and schemas is not None and schemas.outage.is_away:
            return True
        return bool((pressure.sources if is_source else pressure.layers).reasons)

    progress = Progress(settings.stuck_after_ms / 1_000, transport.restart)

    async def ask_archive() -> None:
        # Until it is open, the task that tries to open it reports.
        if archive.is_open:
            await archive.check()

    questions = [
        Question(
            ask_kafka(progress, positions, transport.restoring, transport.ends, is_paused),
            owners.emitted.kafka,
        ),
        Question(ask_archive, owners.emitted.archive),
    ]
    return Watch(progress, questions, tame(), transport.fail)
