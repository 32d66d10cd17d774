"""A worker that fails in one way while a file is there: ``-m tests.support.faulty_worker``.

The last two arguments are the fault and the file; those before them are the worker's own.
"""

from __future__ import annotations

import select
import sys
from pathlib import Path
from typing import Any

from agents.partition.emitter import Emitter
from agents.partition.owners import PartitionManager
from app.config.settings import load_settings
from app.runtime import wiring
from app.runtime.worker_process import WorkerProcess
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.errors import ArchiveError
from tests.support.waiting import until

FAULTS = ("away", "bug", "slow", "stuck")


def break_parts(fault: str, flag: Path) -> None:
    """Replace the methods of this process's worker that the fault is in."""

    def is_broken(part: str) -> bool:
        return fault == part and flag.exists()

    write, announce = EmbeddedArchive.write, Emitter._announce
    restore = PartitionManager.restore

    async def write_or_not(archive: EmbeddedArchive, *rows: Any) -> None:
        if is_broken("away"):
            raise ArchiveError("cannot write: it is away; wait until it is back")
        if is_broken("stuck"):
            select.select([], [], [])
        await write(archive, *rows)

    async def announce_or_not(emitter: Emitter) -> Any:
        if is_broken("bug"):
            raise ValueError("a bug in a background task")
        return await announce(emitter)

    async def restore_or_not(
        owners: PartitionManager, topic: str, partition: int, generation: int
    ) -> int:
        if topic.endswith(".raw") and partition == 1:
            await until(lambda: not is_broken("slow"), 600, "the end of a slow restore")
        return await restore(owners, topic, partition, generation)

    parts: list[tuple[Any, str, Any]] = [
        (EmbeddedArchive, "write", write_or_not),
        (Emitter, "_announce", announce_or_not),
        (PartitionManager, "restore", restore_or_not),
    ]
    for owner, name, method in parts:
        setattr(owner, name, method)


def main() -> None:
    """Run the worker until it ends."""
    *_, fault, flag = sys.argv
    if fault not in FAULTS:
        raise SystemExit(f"error: cannot have the fault {fault!r}; want one of {FAULTS}")
    del sys.argv[-2:]
    break_parts(fault, Path(flag))
    WorkerProcess(wiring.build(load_settings()), loglevel="INFO").execute_from_commandline()


if __name__ == "__main__":
    main()
