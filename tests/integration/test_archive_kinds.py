"""A kind of archive that is added to the list of them: commands ask it, and it serves a worker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.__main__ import group
from app.cluster.topics import topics_found
from app.config import archives
from tables.model.errors import ArchiveError
from tests.support.common import flight
from tests.support.memory_archive import MemoryKind
from tests.support.waiting import until
from tests.support.worker_process import HOUR_MS, MAP, SECONDS_MAX, Process, apply

WORKER = """
from app.config import archives
from app.config.settings import load_settings
from app.runtime.wiring import build
from app.runtime.worker_process import WorkerProcess
from tests.support.memory_archive import MemoryKind

archives.ARCHIVES = (*archives.ARCHIVES, MemoryKind())
WorkerProcess(build(load_settings()), loglevel="INFO").execute_from_commandline()
"""


def test_map_commands_ask_the_kind_that_is_chosen(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made by ``apply``, its rights are printed by ``acl``, and ``reset`` wipes it."""
    kind = MemoryKind()
    monkeypatch.setattr(archives, "ARCHIVES", (*archives.ARCHIVES, kind))
    map_file = tmp_path / "map.toml"
    map_file.write_text(MAP.format(name="kinds"))

    def run(verb: str, *arguments: str, archive: str = "memory") -> str:
        given = [*verb.split(), str(map_file), *arguments, "--brokers", broker]
        given += ["--archive", archive]
        return CliRunner().invoke(group, given, catch_exceptions=False).stdout

    assert "archive: memory of 2 layers made or checked" in run("map apply")
    assert kind.contents.described.keys() == {"hour", "day"}
    text = map_file.read_text()
    other = text.replace('window = "1h"', 'window = "2h"')
    map_file.write_text(f"{other.replace('[layers.day]', '[layers.daily]')}publish = true\n")
    with pytest.raises(ArchiveError, match="cannot use rows of layer hour: it was made for anoth"):
        run("map apply")
    map_file.write_text(text)
    assert not {"kinds.layer.daily", "kinds.feed.daily"} & asyncio.run(topics_found(broker)).keys()
    assert "archive: embedded, nothing to make; pass --archive cassandra for its tables" in run(
        "map apply", archive="embedded"
    )
    assert "let ann remember kinds as verify" in run("map acl", "--user", "ann", "--for", "verify")
    embedded = run("map acl", "--user", "ann", "--for", "verify", archive="embedded")
    assert "remember" not in embedded
    assert "GRANT" not in embedded
    over = run("reset", "--yes")
    assert "the rows of map kinds in memory" in over
    assert "new tables have no grants" in over
    assert "--only memory --user NAME` with `--for worker` and with `--for verify`" in over
    assert not kind.contents.described


async def test_a_kind_that_is_added_serves_a_worker(processes: Callable[..., Process]) -> None:
    """Closed cells rest in it, queries read them, and the embedded archive's folder stays away."""
    worker = processes(archive="memory")
    await apply(worker)
    worker.start((sys.executable, "-c", WORKER))
    await worker.ready()
    raw = f"{worker.map_name}.raw"
    events = [flight(at) for at in (0, 1, 50 * HOUR_MS)]
    await worker.send(raw, *((0, event) for event in events), (1, flight(50 * HOUR_MS, "EWR")))

    async def archived() -> bool:
        assert worker.running.poll() is None, worker.log()
        _, found = await worker.get("/v1/layers")
        return [row["archived_cells"] for row in found["layers"]] == [1, 1]

    await until(archived, SECONDS_MAX)
    _, cells = await worker.get(f"/v1/layers/hour/cells?from=0&to={HOUR_MS}")
    assert [row["measures"]["count"] for row in cells["cells"]] == [2]
    assert await worker.stop() == 0
    assert "archive in the memory of a test" in worker.log()
    assert not await asyncio.to_thread((worker.folder / "archive").exists)
