"""Fixtures of several tests of processes and servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.transport_bench import Bench, Benches


@pytest.fixture
async def benches() -> AsyncIterator[Benches]:
    """Start transports; all are stopped when the test ends."""
    made: list[Bench] = []

    async def start(*args: Any, **options: Any) -> Bench:
        bench = Bench(*args, **options)
        made.append(bench)
        await bench.transport.start()
        return bench

    yield start
    await asyncio.gather(*(bench.close() for bench in made))
