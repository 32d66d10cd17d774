"""Health of a worker, put together: the things watched, and the sources of readiness."""

from __future__ import annotations

from functools import partial

from agents.partition.owners import PartitionManager
from app.config.settings import Settings
from app.health import readiness
from app.health.backpressure import Pressure
from app.health.readiness import Source
from app.health.watch import Progress, Question, Watch, ask_kafka
from app.host.floods import tame
from app.kafka.transport import Transport
from tables.archive.protocol import Archive
from tables.model.topic_partition import TopicPartition


def watch_of(
    settings: Settings,
    owners: PartitionManager,
    transport: Transport,
    pressure: Pressure,
    archive: Archive,
) -> Watch:
    """Return the watch over Kafka, the archive and the progress of partitions."""

    def positions() -> dict[TopicPartition, int]:
        found = {(owner.plan.topic, owner.partition): owner.position for owner in owners.each()}
        if found:
            # Measured here too, so that a pause ends although no more input comes.
            pressure.admits_sources()
        return found

    def is_paused(topic: str) -> bool:
        is_source = owners.plans[topic].source is not None
        return bool((pressure.sources if is_source else pressure.layers).reasons)

    progress = Progress(settings.stuck_after_ms / 1_000, transport.restart)

    async def ask_archive() -> None:
        # Until it is open, who tries to open it reports.
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


def readiness_of(
    settings: Settings,
    watch: Watch,
    transport: Transport,
    *,
    owners: PartitionManager,
    archive: Archive,
    pressure: Pressure,
) -> list[Source]:
    """Return the sources of reasons why a worker is not ready, the most basic one first."""
    return [
        partial(readiness.joining, transport),
        partial(readiness.refused, transport),
        *(partial(readiness.away, question.outage) for question in watch.questions),
        partial(readiness.closed, archive, owners.emitted.archive),
        owners.rivals.reasons,
        partial(readiness.unowned, owners.themap, transport),
        watch.progress.reasons,
        partial(readiness.paused, pressure),
        partial(readiness.reading, transport, settings.chunk_records_max),
    ]
