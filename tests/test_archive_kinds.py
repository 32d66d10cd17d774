"""The list of kinds of archives: what is added to it is chosen by its name, and serves a worker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from memory_archive import MemoryKind
from station_support import HOUR_MS, MAP, SECONDS_MAX, Process, apply
from support import flight, until

from app.commands.map import command
from app.config import archives
from app.config.meanings import MEANINGS
from app.config.settings import Settings, load_settings
from app.demo.embedded_broker import EmbeddedBroker
from app.runtime.wiring import build
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.errors import SettingError

FAULT = (("archive", "archive_folder"), "archive: got memory; want more of it")
WORKER = """
import sys
sys.path.insert(0, "tests")
from memory_archive import MemoryKind
from app.config import archives
from app.config.meanings import MEANINGS
from app.config.settings import load_settings
from app.runtime.wiring import build
from app.runtime.worker_process import WorkerProcess

archives.ARCHIVES = (*archives.ARCHIVES, MemoryKind())
WorkerProcess(build(load_settings()), loglevel="INFO").execute_from_commandline()
"""


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[[MemoryKind], MemoryKind]:
    """Give what adds a kind to the list of them."""

    def added(kind: MemoryKind) -> MemoryKind:
        monkeypatch.setattr(archives, "ARCHIVES", (*archives.ARCHIVES, kind))
        return kind

    return added


@pytest.fixture
def broker() -> Iterator[str]:
    """Run an embedded broker; give its bootstrap address."""
    with EmbeddedBroker() as running:
        yield running.bootstrap


def test_a_setting_names_one_of_the_kinds(add: Callable[[MemoryKind], MemoryKind]) -> None:
    """What may be set is what is in the list, at the time of asking."""
    with pytest.raises(SettingError, match="got 'memory'; want one of embedded, cassandra"):
        load_settings({"archive": "memory"}, {})
    add(MemoryKind())
    assert load_settings({"archive": "memory"}, {}).archive == "memory"
    with pytest.raises(SettingError, match="want one of embedded, cassandra, memory"):
        load_settings({"archive": "tape"}, {})
    with pytest.raises(SettingError, match="'tape'; want one of embedded, cassandra, memory; set"):
        archives.archive_of(Settings(archive="tape"))


def test_the_operating_page_names_every_kind() -> None:
    """A value that may be set is one that the setting's meaning tells of."""
    assert [name for name in archives.names() if f"`{name}`" not in MEANINGS["archive"]] == []


@pytest.mark.parametrize("serves_many", [True, False])
def test_a_kind_says_whether_workers_share_it(
    add: Callable[[MemoryKind], MemoryKind], serves_many: bool
) -> None:
    """Then a group may have several, which need a secret to know each other by."""
    add(MemoryKind(serves_many=serves_many))
    chosen = Settings(archive="memory")
    others = "cassandra or memory" if serves_many else "cassandra"
    alone = f"its archive is memory and serves one worker only; set archive to {others} for more"
    assert archives.why_alone(chosen).startswith("" if serves_many else alone)
    assert bool(archives.why_alone(chosen)) is not serves_many
    assert f"set archive to {others} for more" in archives.why_alone(Settings())
    given = {"archive": "memory", "web_tokens_file": "tokens.toml"}
    if serves_many:
        with pytest.raises(SettingError, match="want peer_secret too"):
            load_settings(given, {})
    else:
        assert load_settings(given, {}).web_tokens_file == "tokens.toml"


def test_a_kind_checks_its_own_settings_unless_all_is_trusted(
    add: Callable[[MemoryKind], MemoryKind],
) -> None:
    """Its faults stand among the others; of a kind that is not chosen nothing is asked."""
    add(MemoryKind(faults=(FAULT,)))
    with pytest.raises(SettingError, match="archive: got memory; want more of it"):
        load_settings({"archive": "memory"}, {})
    assert load_settings({"archive": "memory", "insecure": True}, {}).insecure
    assert load_settings({}, {}).archive == "embedded"


def test_a_worker_is_built_with_the_kind_that_is_chosen(
    add: Callable[[MemoryKind], MemoryKind], tmp_path: Path
) -> None:
    """It fills the folders whose disk the worker watches; without it the worker is another."""
    kind = add(MemoryKind())
    map_file = tmp_path / "map.toml"
    map_file.write_text(MAP.format(name="kinds"))
    given = {
        "map_file": str(map_file), "state_folder": str(tmp_path / "state"),
        "archive_folder": str(tmp_path / "archive"),
    }  # fmt: skip
    chosen = load_settings({"archive": "memory", **given}, {})
    assert archives.archive_of(chosen) is kind
    assert archives.archive_of(chosen).folders(chosen) == [tmp_path / "state"]
    embedded = load_settings(given, {})
    assert archives.archive_of(embedded).folders(embedded) == [tmp_path / "archive"]
    assert isinstance(archives.archive_of(embedded).make(embedded), EmbeddedArchive)
    build(chosen)
    with pytest.raises(SettingError, match="cannot use archive: got 'tape'"):
        build(Settings(archive="tape", map_file=map_file, state_folder=tmp_path / "other"))


def test_map_commands_ask_the_kind_that_is_chosen(
    add: Callable[[MemoryKind], MemoryKind], broker: str, tmp_path: Path
) -> None:
    """It is made by ``apply``, its rights are printed by ``acl``, and ``start-over`` wipes it."""
    kind = add(MemoryKind())
    map_file = tmp_path / "map.toml"
    map_file.write_text(MAP.format(name="kinds"))

    def run(verb: str, *arguments: str, archive: str = "memory") -> str:
        given = [verb, str(map_file), *arguments, "--brokers", broker, "--archive", archive]
        return CliRunner().invoke(command, given, catch_exceptions=False).stdout

    assert "archive: memory of 2 layers made or checked" in run("apply")
    assert kind.contents.described.keys() == {"hour", "day"}
    assert "archive: embedded, nothing to make; pass --archive cassandra for its tables" in run(
        "apply", archive="embedded"
    )
    assert "let ann remember kinds as verify" in run("acl", "--user", "ann", "--for", "verify")
    embedded = run("acl", "--user", "ann", "--for", "verify", archive="embedded")
    assert "remember" not in embedded
    assert "GRANT" not in embedded
    assert "the rows of map kinds in memory" in run("start-over", "--yes")
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
