"""The last records of a topic, read without a group, so that its readers are not disturbed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from app.cluster.topics import topics_found
from app.kafka.scan import Scan, ScanError

BYTES_MAX = 64 << 20
"""The bytes of all values at which reading ends."""


async def last_records(
    brokers: str, topic: str, records_max: int, options: Mapping[str, Any]
) -> list[list[bytes]]:
    """Return by partition the values of a topic's last records, in their order.

    Records without value, such as heartbeats, are left out.

    Args:
        brokers: bootstrap servers, ``host:port`` separated by commas.
        topic: the topic.
        records_max: records of all partitions, which have the same share.
        options: security options of aiokafka's clients.

    Raises:
        ScanError: no broker answers, or the topic is not there.
    """
    partitions = (await topics_found(brokers, options)).get(topic)
    if partitions is None:
        raise ScanError(
            f"cannot read {topic}: the brokers at {brokers} show this user no such topic; want a"
            " topic with events, and the right to Describe and Read it"
        )
    share = -(-records_max // partitions)
    values: list[list[bytes]] = [[] for _ in range(partitions)]
    size = 0
    async with Scan(brokers, options, f"cannot read {topic}") as scan:
        firsts = await scan.starts({topic: partitions})
        ends = await scan.ends(firsts)
        starts = {tp: max(first, ends[tp] - share) for tp, first in firsts.items()}
        async with contextlib.aclosing(scan.read(starts, ends)) as found:
            async for (_, partition), records in found:
                some = [record.value for record in records if record.value is not None]
                values[partition] += some
                size += sum(map(len, some))
                if size > BYTES_MAX:
                    break
    return values
