"""Logins that a broker refuses are tried less and less often.

aiokafka's clients try a connection again after a tenth of a second whatever ended the last one.
A password that was changed on the brokers would be tried several times a second by each of them,
for ever; many systems lock a user who does that.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka import client, errors

from app.kafka.connection_causes import LOGIN_ERRORS

AGAIN_S = (1.0, 60.0)
"""The wait after the first refusal of a login, which doubles each time, and the longest."""

Connect = Callable[..., Awaitable[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Refusal:
    error: errors.KafkaError
    wait_s: float
    until_s: float


class Logins:
    """Connects by ``connect``, aiokafka's own, and remembers refused logins by broker and user."""

    def __init__(self, connect: Connect, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._connect = connect
        self._clock_s = clock_s
        self._refusals: dict[tuple[Any, ...], _Refusal] = {}

    async def connect(self, host: str, port: int, **options: Any) -> Any:
        """Return a connection; raise the last refusal again while it is too early for another try.

        Raises:
            KafkaError: the login is refused, or there is no connection.
            OSError: there is no connection.
        """
        user = (host, port, options.get("sasl_mechanism"), options.get("sasl_plain_username"))
        last = self._refusals.get(user)
        if last is not None and self._clock_s() < last.until_s:
            raise type(last.error)(*last.error.args)
        try:
            connection = await self._connect(host, port, **options)
        except LOGIN_ERRORS as error:
            wait_s = min(2 * last.wait_s, AGAIN_S[1]) if last is not None else AGAIN_S[0]
            self._refusals[user] = _Refusal(error, wait_s, self._clock_s() + wait_s)
            raise
        self._refusals.pop(user, None)
        return connection


def hold_back_logins() -> None:
    """Make all clients of this process connect by :class:`Logins` from now on."""
    if not isinstance(getattr(client.create_conn, "__self__", None), Logins):
        client.create_conn = Logins(client.create_conn).connect
