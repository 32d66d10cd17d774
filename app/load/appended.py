"""A load that is appended to a topic: it starts after the topic's last heartbeats.

A load that settles ends with heartbeats past its windows; any event before them comes too late.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

import aiokafka
from aiokafka.errors import KafkaError

from app.kafka.brokers import connect_error
from app.load.plan import GenerateError, LoadSpec, check_times
from tables.model.layer import Map, Source
from tables.model.window import time_text
from tables.record.heartbeat import HEARTBEAT_HEADER, decode_heartbeat

_SECONDS_MAX = 30.0


async def last_heartbeat_ms(
    brokers: str, topic: str, ends: Mapping[int, int], options: Mapping[str, Any]
) -> int | None:
    """Return the latest time of a heartbeat that is the last record of a partition.

    Args:
        brokers: bootstrap servers, ``host:port`` separated by commas.
        topic: the source's topic.
        ends: the end of each partition.
        options: security options of aiokafka's clients.

    Returns:
        Milliseconds since the epoch; None if no partition ends with a heartbeat.

    Raises:
        GenerateError: the broker does not answer.
    """
    wanted = {aiokafka.TopicPartition(topic, part): end - 1 for part, end in ends.items() if end}
    if not wanted:
        return None
    times = []
    try:
        async with (
            asyncio.timeout(_SECONDS_MAX),
            aiokafka.AIOKafkaConsumer(
                bootstrap_servers=brokers, enable_auto_commit=False, **options
            ) as consumer,
        ):
            consumer.assign(list(wanted))
            for place, offset in wanted.items():
                consumer.seek(place, offset)
            while wanted:
                for place, records in (await consumer.getmany(timeout_ms=200)).items():
                    if records and records[-1].offset >= wanted.get(place, 0):
                        wanted.pop(place, None)
                        headers = dict(records[-1].headers)
                        if HEARTBEAT_HEADER in headers:
                            times.append(decode_heartbeat(headers[HEARTBEAT_HEADER]))
    except (KafkaError, TimeoutError) as error:
        cannot = f"cannot read the last records of {topic}"
        raise GenerateError(str(await connect_error(error, cannot, brokers, options))) from error
    return max(times, default=None)


def start_after(
    themap: Map, source: Source, plan: LoadSpec, last_ms: int, now_ms: int, *, settle: bool
) -> LoadSpec:
    """Return a load whose events come after a heartbeat.

    Raises:
        GenerateError: then they, or the last heartbeat, would be too far in the future.
    """
    if last_ms <= plan.start_ms:
        return plan
    later = dataclasses.replace(plan, start_ms=last_ms)
    try:
        check_times(themap, source, later, now_ms, settle=settle)
    except GenerateError as error:
        raise GenerateError(
            f"cannot append to {source.topic}: events before its last heartbeat come too late, and"
            f" later ones run past the source's future_skew; got {time_text(last_ms)}; give"
            " --no-settle, wait, or raise future_skew in the map"
        ) from error
    return later
