"""A connection to Kafka that asks for and changes topics and groups."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from app.kafka.brokers import connect_error

Options = Mapping[str, Any]
"""Further options of a client of Kafka, such as TLS and login."""

_REQUEST_TIMEOUT_MS = 20_000


@contextlib.asynccontextmanager
async def admin_of(
    brokers: str, options: Options | None, cannot: str = "cannot read topics"
) -> AsyncIterator[AIOKafkaAdminClient]:
    """Give a connection.

    Raises:
        BrokersAwayError: a broker does not answer.
        TreasureMapError: no broker answers, or one refuses the connection.
    """
    options = options or {}
    admin = AIOKafkaAdminClient(
        bootstrap_servers=brokers, request_timeout_ms=_REQUEST_TIMEOUT_MS, **options
    )
    try:
        await admin.start()
        yield admin
    except (KafkaError, OSError, TimeoutError) as error:
        raise await connect_error(error, cannot, brokers, options) from error
    finally:
        await admin.close()
