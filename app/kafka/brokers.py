"""Brokers as clients meet them: away though others answer, refusing, or without producer ids."""

from __future__ import annotations

import asyncio
import logging
import random
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from aiokafka import errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.api import Request
from aiokafka.protocol.transaction import InitProducerIdRequest

import app.kafka.aiokafka_private  # noqa: F401 - so that connections of all commands end as there
from app.kafka.connection_causes import cause_of
from tables.called import called
from tables.model.errors import TreasureMapError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

PATIENCE_S = 60.0
"""How long a worker that starts asks again while some of the brokers do not answer."""

_ASK_AGAIN_S = 1.0

UNAUTHORIZED = (
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
)
"""The answers of brokers to a user who lacks a right."""

# Answers that say "not now" to a request for a producer id: the producer's own start asks again.
_LATER = (
    errors.GroupCoordinatorNotAvailableError,
    errors.GroupLoadInProgressError,
    errors.NotCoordinatorForGroupError,
)


class NotAllowedError(TreasureMapError):
    """This user lacks a right; asking again does not help."""


class BrokersAwayError(TreasureMapError):
    """A broker did not answer; another one, or the same one a moment later, may."""


async def answer_of_any(client: AIOKafkaClient, request: Request[Any]) -> Any:
    """Return the first answer of a broker; a cluster names dead ones for some seconds more.

    Raises:
        KafkaError: no broker answers; it is the error of the last one that was asked.
    """
    nodes = [one.nodeId for one in client.cluster.brokers()]
    *others, last = random.sample(nodes, len(nodes))
    for node in others:
        try:
            return await client.send(node, request)
        except (errors.KafkaConnectionError, errors.NodeNotReadyError) as error:
            log.info("asking another broker, because %s does not answer: %s", node, error)
    return await client.send(last, request)


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
    error = errors.for_code(answer.error_code)
    if error is errors.ClusterAuthorizationFailedError:
        raise error
    return error is errors.NoError or issubclass(error, _LATER)


async def connect_error(
    error: Exception, cannot: str, brokers: str, options: Mapping[str, Any]
) -> TreasureMapError:
    """Return why there is no connection; a BrokersAwayError if asking again may help.

    ``cannot`` is the failed action, as the beginning of a sentence.
    """
    if isinstance(error, UNAUTHORIZED):
        user = options.get("sasl_plain_username") or "NAME"
        command = f"map acl FILE --for ROLE --user {shlex.quote(user)}"
        return NotAllowedError(
            f"{cannot}: this user lacks a right ({error!r}); run `{called(command)}` and give its"
            " output to an administrator"
        )
    cause = await cause_of(brokers, options)
    if cause is not None and cause.is_final:
        return TreasureMapError(f"{cannot}: {cause}")
    # aiokafka's first question goes to the brokers of the setting, later ones to any they name.
    nobody = isinstance(error, errors.KafkaConnectionError) and "bootstrap" in str(error)
    refusals = (errors.BrokerResponseError, errors.AuthenticationFailedError)
    is_refusal = isinstance(error, refusals) and not error.retriable
    kind = TreasureMapError if nobody or is_refusal else BrokersAwayError
    why = cause or error or type(error).__name__
    return kind(
        f"{cannot}: {why}; got brokers {brokers}; want at least one that answers; start it or"
        " correct the setting `brokers`"
    )


async def patiently(
    step: Callable[[], Awaitable[Result]], patience_s: float = PATIENCE_S
) -> Result:
    """Run a step, again and again while brokers do not answer.

    Clients ask any broker that the cluster names: one that is away fails them though others answer.

    Raises:
        BrokersAwayError: brokers did not answer for ``patience_s`` seconds.
    """
    give_up = time.monotonic() + patience_s
    waiting = False
    while True:
        try:
            return await step()
        except BrokersAwayError as error:
            if time.monotonic() > give_up:
                raise
            if not waiting:
                log.warning("%s; they are asked again for %.0f s", error, patience_s)
            waiting = True
            await asyncio.sleep(_ASK_AGAIN_S)
