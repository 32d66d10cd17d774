"""The whole examination: settings, host, map, archive and Kafka, in this order.

A part that cannot be examined is a finding itself; the others are examined all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

from app.config.archives import archive_of
from app.config.settings import Settings
from app.doctor.host import disks, files, packages
from app.doctor.kafka import kafka_findings
from app.doctor.posture import posture
from app.host.findings import Finding, of_problem
from app.mapfile.load import load_map
from tables.model.errors import ProblemsError, TreasureMapError
from tables.model.layer import Map


async def examine(settings: Settings, map_file: Path | None) -> AsyncIterator[Finding]:
    """Yield the findings as they come.

    Args:
        settings: the settings of a worker, or of a command.
        map_file: the map to examine against; None examines the parts that need no map.
    """
    themap = None
    if map_file is not None:
        finding, themap = _map(map_file)
        for one in finding:
            yield one
    for part in (packages, disks, files, posture):
        for one in part(settings):
            yield one
    kind = archive_of(settings)
    found = await _part("archive", lambda: asyncio.to_thread(kind.examine, settings, themap))
    for one in found:
        yield one
    for one in await _part("kafka", lambda: kafka_findings(settings, themap)):
        yield one


async def _part(
    name: str, examined: Callable[[], Awaitable[Iterable[Finding]]]
) -> Iterable[Finding]:
    try:
        return await examined()
    except ProblemsError as error:
        return [of_problem("fail", problem) for problem in error.problems]
    except TreasureMapError as error:
        return [Finding("fail", name, str(error))]


def _map(file: Path) -> tuple[list[Finding], Map | None]:
    try:
        themap = load_map(file)
    except ProblemsError as error:
        return [Finding("fail", f"map {file}", problem) for problem in error.problems], None
    words = f"revision {themap.revision}, digest {themap.digest}"
    return [Finding("ok", f"map {themap.name}", words)], themap
