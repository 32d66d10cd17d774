"""Drain: waits until a worker has applied all input, and rests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from app.demo.worker import DemoWorker, Missing
from app.kafka.scan import Scan, partitions_of
from tables.model.layer import Map

STILL_SECONDS_MAX = 60.0
# A drained flow must be the same again after this: a worker announces its progress to coarser
# layers once a second.
QUIET_SECONDS = 1.5


async def drain(
    brokers: str,
    themap: Map,
    worker: DemoWorker,
    ends: Mapping[str, int],
    *,
    with_open_windows: bool = False,
) -> None:
    """Wait until windows are closed and acknowledged, all input is applied, and all is quiet.

    Args:
        brokers: bootstrap servers.
        themap: the map that the worker runs.
        worker: the only worker.
        ends: by layer, the time that its watermark must reach.
        with_open_windows: whether open windows must be sent on too, as they are.

    Raises:
        DemoError: the worker ended, or nothing has moved for ``STILL_SECONDS_MAX``.
        ScanError: the broker does not answer.
    """
    quiet: dict[tuple[str, int], int] | None = None

    async def missing() -> Missing | None:
        nonlocal quiet
        status = await worker.status()
        positions = status.positions()
        async with Scan(brokers, {}, "cannot read the ends of topics") as scan:
            stops = await scan.ends(partitions_of(themap.inputs()))
        behind = {one: stop for one, stop in stops.items() if positions.get(one, 0) != stop}
        # Between these two a coarser layer may just wait for its next announcement.
        if open_layers := status.open_layers(ends):
            return Missing(f"windows of {', '.join(open_layers)} that are open", positions)
        before, quiet = quiet, positions
        waiting = status.unacknowledged + (status.waiting_open if with_open_windows else 0)
        if behind or waiting:
            reached = {one: positions.get(one) for one in behind}
            return Missing(
                f"positions {reached} of topics that end at {behind},"
                f" and {waiting} unacknowledged windows",
                positions,
            )
        if before == positions:
            return None
        await asyncio.sleep(QUIET_SECONDS)
        return Missing("a worker that rests", positions)

    await worker.wait(missing, STILL_SECONDS_MAX)
