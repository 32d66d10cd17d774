"""An administrator's client."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from aiokafka.admin import AIOKafkaAdminClient


@contextlib.asynccontextmanager
async def admin_of(brokers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Connect as an administrator."""
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()
