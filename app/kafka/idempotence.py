"""Whether a broker takes idempotent producers, asked before one is started."""

from __future__ import annotations

from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NoError,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.transaction import InitProducerIdRequest

from app.kafka.brokers import answer_of_any

# Answers that say "not now": the producer's own start asks again after them.
_LATER = (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError)


async def has_idempotent_producer(brokers: str, options: dict[str, Any] | None = None) -> bool:
    """Ask a broker for a producer id (KIP-98: InitProducerId); return whether it gives one.

    A broker may list the request among those it knows and still answer it with an error; a producer
    that is started idempotent against it logs errors and fails, or asks for ever.

    Raises:
        KafkaError: no broker answers, or this client may not ask.
    """
    client = AIOKafkaClient(bootstrap_servers=brokers, **(options or {}))
    try:
        await client.bootstrap()
        request = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=60_000)
        answer = await answer_of_any(client, request)
    finally:
        await client.close()
    error = for_code(answer.error_code)
    if error is ClusterAuthorizationFailedError:
        raise error
    return error is NoError or issubclass(error, _LATER)
