"""Brokers that do not answer, though others do: what a worker does that starts meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiokafka.errors import (
    AuthenticationFailedError,
    BrokerResponseError,
    KafkaConnectionError,
    KafkaError,
)

from tables.errors import TreasureMapError

log = logging.getLogger(__name__)
Result = TypeVar("Result")

PATIENCE_S = 60.0
"""How long a worker that starts asks again while some of the brokers do not answer."""

_ASK_AGAIN_S = 1.0


class BrokersAwayError(TreasureMapError):
    """A broker did not answer; another one, or the same one a moment later, may."""


def is_refusal(error: Exception) -> bool:
    """Tell whether a broker answered that it will not, rather than not at all."""
    refusals = (BrokerResponseError, AuthenticationFailedError)
    return isinstance(error, refusals) and not error.retriable


def connect_error(error: KafkaError, brokers: str) -> TreasureMapError:
    """Return why there is no connection; it is a BrokersAwayError unless nobody answers at all."""
    # aiokafka's first question goes to the brokers of the setting, later ones to any they name.
    nobody = isinstance(error, KafkaConnectionError) and "bootstrap" in str(error)
    kind = TreasureMapError if nobody or is_refusal(error) else BrokersAwayError
    return kind(
        f"cannot connect to Kafka: {error!r}; got brokers {brokers}; want at least one that"
        " answers; start it or correct the setting `brokers`"
    )


async def patiently(
    step: Callable[[], Awaitable[Result]], patience_s: float = PATIENCE_S
) -> Result:
    """Do a step, again and again while brokers do not answer.

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
