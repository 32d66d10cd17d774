"""Readiness: why this worker should not be asked now, as sentences from several small functions.

Such a function does not wait, and yields a sentence for each fault.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterable, Iterator

from agents.decode.schemas import Schemas
from agents.outage import Outage
from agents.partition.owners import PartitionManager
from app.health.backpressure import Pressure
from app.health.watch import Watch
from app.kafka.assignor import pairs
from app.kafka.transport import NO_GENERATION, Transport
from tables.archive.protocol import Archive
from tables.model.layer import Map
from tables.model.topic_partition import named

Source = Callable[[], Iterable[str]]

READY = "restored and caught up"


def reasons(
    transport: Transport,
    owners: PartitionManager,
    archive: Archive,
    *,
    pressure: Pressure,
    watch: Watch,
    behind_records_max: int,
    schemas: Schemas | None = None,
) -> Iterator[str]:
    """Yield why a worker is not ready, the most basic reason first."""
    yield from joining(transport)
    if refusal := transport.membership.refusal:
        yield f"the group refuses this worker: {refusal}"
    for question in watch.questions:
        yield from away(question.outage)
    if schemas is not None:
        yield from away(schemas.outage)
    yield from closed(archive, owners.emitted.archive)
    yield from owners.rivals.reasons()
    yield from unowned(owners.themap, transport)
    yield from watch.progress.reasons()
    yield from paused(pressure)
    yield from reading(transport, behind_records_max)


def joining(transport: Transport) -> Iterator[str]:
    """Say that the worker has not joined the group yet."""
    if transport.statistics().generation == NO_GENERATION:
        yield "joining the group"


def away(outage: Outage, now_s: Callable[[], float] = time.time) -> Iterator[str]:
    """Say that a dependency does not answer, or refuses, and since when."""
    if outage.is_away:
        how, why = outage.words
        since = dt.datetime.fromtimestamp(now_s() - outage.away_s, dt.UTC)
        yield (
            f"{outage.name} {how} since {since:%Y-%m-%dT%H:%M:%SZ} ({outage.away_s:.0f} s): {why}"
        )


def closed(archive: Archive, outage: Outage) -> Iterator[str]:
    """Say that the archive has not been opened yet, until its outage says more."""
    if not archive.is_open and not outage.is_away:
        yield "the archive does not answer"


def unowned(themap: Map, transport: Transport) -> Iterator[str]:
    """Say that no worker of the group reads some partition of the map."""
    wanted = pairs({topic: range(count) for topic, count in themap.inputs().items()})
    lacking = sorted(wanted - transport.group.urls.keys())
    if lacking and transport.statistics().generation != NO_GENERATION:
        yield f"no worker of the group owns {named(lacking)}"


def reading(transport: Transport, behind_records_max: int) -> Iterator[str]:
    """Say which partitions are not restored, fetched or caught up yet.

    A worker counts as caught up with ``behind_records_max`` unread records, over all partitions:
    one chunk.
    """
    if unserved := transport.unserved():
        yield f"{named(unserved)} are assigned, and neither read nor restored"
    if restoring := transport.statistics().restoring:
        yield f"restoring {restoring} partitions"
    lags = transport.lag_records().values()
    if any(lag is None for lag in lags):
        yield "waiting for the first fetch of some partitions"
    behind = sum(lag for lag in lags if lag is not None)
    if behind > behind_records_max:
        yield f"{behind} records behind"


def paused(pressure: Pressure) -> Iterator[str]:
    """Say which inputs are paused until cells have left, or a disk has room."""
    for gate in pressure.gates:
        if gate.reasons:
            yield f"{gate.name} are paused: {'; '.join(gate.words())}"
