"""The faults: each does its harm to the arena and, unless that is the point, mends it again."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from tests.chaos.arena import WORKERS_MAX, WORKERS_MIN, Arena, SmallDisk
from tests.support.cluster import SESSION_MS, Worker
from tests.support.waiting import until

AWAY_SECONDS = 12.0
FILL_AFTER_SECONDS = 10.0
FREE_SECONDS_MAX = 120
FREE_BYTES_MIN = 4 << 20
DAY_SECONDS = 86_400

Fault = Callable[[Arena], Awaitable[bool]]
"""Tells whether it could be done: it needs a worker that nothing else happens to."""


async def kill(arena: Arena) -> bool:
    """SIGKILL a worker and start it again, with its state."""
    with arena.victim() as worker:
        if worker is None:
            return False
        worker.signal(signal.SIGKILL)
        arena.counts["SIGKILL"] += 1
        await asyncio.sleep(arena.random.uniform(0, 2))
        worker.start()
    return True


async def wipe(arena: Arena) -> bool:
    """SIGKILL a worker and remove its state folder before it starts again."""
    with arena.victim() as worker:
        if worker is None:
            return False
        worker.signal(signal.SIGKILL)
        arena.counts["SIGKILL"] += 1
        worker.wipe_state()
        worker.start()
    return True


async def swap(arena: Arena) -> bool:
    """Give a killed worker the state folder that it had some time ago."""
    with arena.victim() as worker:
        if worker is None:
            return False
        copy = arena.folder / f"copy-{worker.node}"
        for old in (False, True):
            worker.signal(signal.SIGKILL)
            arena.counts["SIGKILL"] += 1
            # On a disk that is full some of the copy may be missing: such a folder is a fault too.
            with contextlib.suppress(OSError):
                if old:
                    worker.wipe_state()
                    shutil.move(copy, worker.state_folder)
                else:
                    shutil.rmtree(copy, ignore_errors=True)
                    worker.state_folder.mkdir(parents=True, exist_ok=True)
                    shutil.copytree(worker.state_folder, copy)
            worker.start()
            await asyncio.sleep(arena.random.uniform(8, 12))
    return True


async def terminate(arena: Arena) -> bool:
    """Ask a worker to end, and start it again: a rolling deployment."""
    with arena.victim() as worker:
        if worker is None:
            return False
        await _end(arena, worker)
        worker.start()
    return True


async def freeze(arena: Arena) -> bool:
    """SIGSTOP a worker past the session timeout: it wakes as a zombie, others have its place."""
    with arena.victim() as worker:
        if worker is None:
            return False
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(SESSION_MS / 1_000 * arena.random.uniform(1.3, 1.8))
        worker.signal(signal.SIGCONT)
    return True


async def add(arena: Arena) -> bool:
    """Start one more worker."""
    if len(arena.present()) >= WORKERS_MAX:
        return False
    arena.add_worker()
    return True


async def remove(arena: Arena) -> bool:
    """Ask a worker to end, for good or until one is added."""
    if len(arena.present()) <= WORKERS_MIN:
        return False
    with arena.victim() as worker:
        if worker is None:
            return False
        arena.removed.add(worker)
        await _end(arena, worker)
    return True


async def cassandra_away(arena: Arena) -> bool:
    """Kill Cassandra; the stream runs on; start it again."""
    return await _archive_away(arena, AWAY_SECONDS)


def archive_away_for(seconds: float) -> Fault:
    """Return the fault that Cassandra is away for this time, with the reports of workers."""

    async def archive_away(arena: Arena) -> bool:
        if len(await arena.ledgers()) < len(arena.present()):
            return False  # A worker that begins now would not find its archive.
        return await _archive_away(arena, seconds)

    return archive_away


async def _archive_away(arena: Arena, seconds: float) -> bool:
    async with arena.archive_lock:
        arena.cassandra.kill()
        await asyncio.sleep(seconds)
        if seconds > AWAY_SECONDS:
            click.echo(await arena.readiness())
        arena.cassandra.spawn()
        await asyncio.to_thread(arena.cassandra.wait_until_serving)
    return True


async def broker_away(arena: Arena) -> bool:
    """Kill one of the brokers; start it again."""
    if not arena.brokers:
        return False
    async with arena.broker_lock:
        node = arena.random.choice(arena.brokers)
        node.kill()
        await asyncio.sleep(AWAY_SECONDS)
        node.spawn()
        await asyncio.to_thread(node.wait_until_serving)
    return True


async def disk_full(arena: Arena) -> bool:
    """Move a worker to a small disk, fill it, make place again, and move it back."""
    disk = arena.disk
    if disk is None or disk.folder is None or arena.disk_lock.locked():
        return False
    async with arena.disk_lock:
        return await _fill(arena, disk, disk.folder)


async def _end(arena: Arena, worker: Worker) -> None:
    """Ask a worker to end; one that has just been started may not listen yet."""
    code = await worker.stop_aside()
    if code not in (0, -signal.SIGTERM):
        arena.note_end(worker, code)


async def _fill(arena: Arena, disk: SmallDisk, folder: Path) -> bool:
    with arena.victim() as worker:
        if worker is None:
            return False
        home = worker.state_folder
        _move(arena, worker, folder / worker.node)
        await asyncio.sleep(FILL_AFTER_SECONDS)
        disk.fill()
    # Not busy now: if it ends by itself it is started again.
    await asyncio.sleep(AWAY_SECONDS)
    disk.clear()

    # Workers that stayed would fill it by themselves: it is too small for the states of two.
    async def free() -> bool:
        return worker not in arena.busy

    await until(free, FREE_SECONDS_MAX)
    arena.busy.add(worker)
    try:
        _move(arena, worker, home)
    finally:
        arena.busy.discard(worker)
    return True


def _move(arena: Arena, worker: Worker, folder: Path) -> None:
    """Kill a worker, remove its state, and keep its state in ``folder`` from now on."""
    worker.signal(signal.SIGKILL)
    worker.wipe_state()
    worker.use_state_folder(folder, FREE_BYTES_MIN)
    if worker not in arena.removed:
        arena.counts["SIGKILL"] += 1
        worker.start()


async def shift_clock(arena: Arena) -> bool:
    """Start a killed worker with its wall clock a day off, in either direction."""
    library = arena.shifting_clock()
    with arena.victim() as worker:
        if worker is None or library is None:
            return False
        seconds = arena.random.choice([-DAY_SECONDS, DAY_SECONDS])
        worker.signal(signal.SIGKILL)
        arena.counts["SIGKILL"] += 1
        worker.start({"LD_PRELOAD": str(library), "CLOCK_SHIFT_SECONDS": str(seconds)})
    return True


SHORT: list[Fault] = [
    kill, kill, kill, wipe, wipe, swap, terminate, freeze, add, remove, cassandra_away,
]  # fmt: skip
"""One round, in an order that the seed decides: seven kills of workers, for a swap takes two."""

LONG: list[Fault] = [*SHORT, freeze, broker_away, disk_full, shift_clock]
