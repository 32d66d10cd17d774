"""Fixtures of several tests of processes and servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.transport_harness import Benches, TransportHarness


@pytest.fixture
async def benches() -> AsyncIterator[Benches]:
    """Start transports; all are stopped when the test ends."""
    made: list[TransportHarness] = []

    async def start(*args: Any, **options: Any) -> TransportHarness:
        bench = TransportHarness(*args, **options)
        made.append(bench)
        await bench.transport.start()
        return bench

    yield start
    await asyncio.gather(*(bench.close() for bench in made))
