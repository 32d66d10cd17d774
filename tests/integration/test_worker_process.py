"""A worker as a process: both commands, its answers, how it ends and its last words."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from app.demo.embedded_broker import EmbeddedBroker
from app.kafka.log import KafkaLog
from app.mapfile.load import load_map
from app.runtime import wiring
from app.runtime.wiring import StorageService
from tables.archive.embedded.archive import EmbeddedArchive
from tables.archive.protocol import Archive
from tables.model.errors import ArchiveAwayError, ArchiveError
from tables.model.layer import Map
from tables.record.sealed import seal
from tables.state.journal import Claim, encode_entry
from tests.support import servers
from tests.support.common import flight, small_map
from tests.support.waiting import until
from tests.support.worker_process import (
    AWAY,
    COMMANDS,
    FAUST,
    MODULE,
    SECONDS_MAX,
    Process,
    apply,
    last_words,
)

HOUR_MS = 3_600_000
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING) [\w.]+: [ -~]+")
"""A line of a log in which nothing is wrong: time, level, logger and a sentence that prints."""


async def test_a_worker_serves_until_it_is_asked_to_stop(
    processes: Callable[..., Process],
) -> None:
    """Both commands, from ready to folded, closed, archived and rolled up."""
    module, faust = processes(), processes()
    await asyncio.gather(apply(module), apply(faust))
    del module.settings["map_file"]
    module.start(MODULE, "--map", str(module.map_file), "-l", "INFO")
    faust.start(FAUST)
    await asyncio.gather(check_service(module), check_service(faust))


async def check_service(worker: Process) -> None:
    """Take a worker from its start to its end."""
    await worker.ready()
    assert (await worker.get("/livez"))[0] == 200
    _, layers = await worker.get("/v1/layers")
    assert [(row["name"], row["watermark_ms"]) for row in layers["layers"]] == [
        ("hour", None), ("day", None),
    ]  # fmt: skip
    # Faust's own views stay off.
    for path in ("/", "/stats/", "/stats", "/router/", "/table/", "/table", "/graph/"):
        assert (await worker.get(path))[0] == 404, path
    raw = f"{worker.map_name}.raw"
    early = [flight(at, origin, "UA") for at, origin in ((0, "JFK"), (1, "JFK"), (2, "EWR"))]
    late = [flight(50 * HOUR_MS, origin, "UA") for origin in ("JFK", "EWR")]
    await worker.send(raw, (0, early[0]), (0, early[1]), (1, early[2]), (0, late[0]), (1, late[1]))

    async def rolled_up() -> bool:
        _, found = await worker.get("/v1/layers")
        hour, day = found["layers"]
        return bool(hour["archived_cells"] == 2 and day["archived_cells"] == 1)

    await until(rolled_up, SECONDS_MAX)
    status, ledger = await worker.get("/v1/ledger")
    assert status == 200
    assert ledger["balanced"], ledger["problems"]
    rows = ledger["records"][raw]
    assert {p: (row["read"], row["position"]) for p, row in rows.items()} == {
        "0": (3, 3), "1": (2, 2),
    }  # fmt: skip
    assert ledger["layers"]["hour"]["folded"] == 5
    _, layers = await worker.get("/v1/layers")
    hour, day = layers["layers"]
    assert hour["watermark_ms"] == 50 * HOUR_MS
    assert (hour["open_cells"], hour["partitions"], day["partitions"]) == (2, [0, 1], [0, 1])
    _, cells = await worker.get(f"/v1/layers/day/cells?from=0&to={24 * HOUR_MS}")
    assert [row["measures"]["count"] for row in cells["cells"]] == [3]
    assert await worker.stop() == 0
    day = f"{worker.map_name}.layer.day"
    assert stores_of(worker) == [f"{day}/0", f"{day}/1", f"{raw}/0", f"{raw}/1"]
    log = worker.log()
    assert "error:" not in log
    assert "Traceback" not in log
    # Nothing of Faust's own: no table, no box, no escape code, no tree of services.
    lines = log.splitlines()
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    assert [line for line in lines if "[^" in line] == []
    (ready,) = [line for line in lines if "ready: " in line]
    assert ready.partition("ready: ")[2] == (
        f"map {worker.map_name}, revision 1, answers at http://127.0.0.1:{worker.port};"
        f" layers hour, day; partitions {raw} 2 of 2, {day} 2 of 2"
    )
    assert lines[-1].endswith("the worker has stopped")
    # The events of this test are of 1970.
    told = [line for line in lines if " WARNING " in line]
    assert ["are these seconds" in line for line in told] == [True]


def stores_of(worker: Process) -> list[str]:
    """Return the partitions that a worker has opened a store for."""
    folder = Path(worker.settings["state_folder"]) / worker.map_name
    return sorted(f"{path.parent.name}/{path.name}" for path in folder.glob("*/[0-9]*"))


async def test_a_worker_that_is_stopped_while_it_joins_leaves_nothing_behind(
    processes: Callable[..., Process],
) -> None:
    """The answer to the join may still come; nothing is restored for it then."""
    worker = processes()
    await apply(worker)
    worker.start(MODULE, "-l", "debug")
    await worker.says("(Re-)joining group")
    assert await worker.stop() == 0
    assert AWAY not in worker.log()
    assert stores_of(worker) == []


async def test_a_worker_stops_although_its_broker_does_not_answer(
    processes: Callable[..., Process],
) -> None:
    """Every step of the way out has a deadline."""
    with EmbeddedBroker() as broker:
        assert broker.pid is not None
        worker = processes(broker.bootstrap)
        await apply(worker)
        worker.start()
        await worker.ready()
        os.kill(broker.pid, signal.SIGSTOP)
        assert await worker.stop() == 0
        os.kill(broker.pid, signal.SIGKILL)


def miss_topics(worker: Process) -> str:
    """Leave the topics unmade: nothing to do here."""
    return (
        rf"cannot use topics of map {worker.map_name}: 6 problem\(s\)\n"
        rf"  - topic {worker.map_name}\.raw: missing, or this user may not Describe it; make it"
        r" with `map apply`, or allow the rights of `map acl`\n"
    )


def spoil_map(worker: Process) -> str:
    """Write a file that is not a map."""
    worker.map_file.write_text("revision = 1")
    return r"cannot use map .*: \d+ problem\(s\)\n"


def lose_map(worker: Process) -> str:
    """Take the map file away."""
    worker.map_file.unlink()
    return r"cannot use map .*: 1 problem\(s\)\n  - file: cannot be read"


def spoil_setting(worker: Process) -> str:
    """Set a value that the setting refuses."""
    worker.settings["group"] = "a b"
    return r"cannot use settings: 1 problem\(s\)\n  - group \(environment TREASURE_MAP_GROUP\)"


def block_state_folder(worker: Process) -> str:
    """Put a file at the path of the folder."""
    worker.settings["state_folder"] = str(worker.map_file / "state")
    return r"cannot make state folder .*state: Not a directory; want a folder .*; set state_folder"


def stop_broker(worker: Process) -> str:
    """Name a port without a broker."""
    (port,) = servers.free_ports(1)
    worker.settings["brokers"] = f"127.0.0.1:{port}"
    return rf"cannot connect to Kafka: .*; got brokers 127\.0\.0\.1:{port}; want .*; start it"


def lose_host(worker: Process) -> str:
    """Bind to an address that no machine has."""
    worker.settings |= {"web_host": "no.such.host.invalid", "insecure": "true"}
    return r"cannot listen for queries: .*; got no\.such\.host\.invalid:\d+; want .* set web_host"


@pytest.mark.parametrize(
    "spoil",
    [miss_topics, spoil_map, lose_map, spoil_setting, block_state_folder, stop_broker, lose_host],
)
async def test_a_worker_that_cannot_start_says_why_and_nothing_else(
    processes: Callable[..., Process], spoil: Callable[[Process], str]
) -> None:
    """Both commands end with code 1 and the reason as their last words."""
    workers = {command: processes() for command in COMMANDS}
    wanted = {}
    for command, worker in workers.items():
        wanted[command] = spoil(worker)
        worker.start(COMMANDS[command])
    for command, worker in workers.items():
        assert await worker.ended() == 1
        assert re.match(wanted[command], last_words(worker)), last_words(worker)


async def test_what_a_worker_writes_is_its_users_alone(
    processes: Callable[..., Process],
) -> None:
    """Whatever the umask of the shell: local stores and archive hold events."""
    worker = processes()
    await apply(worker)
    worker.start()
    await worker.ready()
    assert await worker.stop() == 0
    made = [worker.folder / "state", *(worker.folder / "state").rglob("*")]
    made += [worker.folder / "archive", *(worker.folder / "archive").rglob("*")]
    assert len(made) > 10
    open_to_others = [path for path in made if path.stat().st_mode & 0o077]
    assert open_to_others == []


async def test_a_secret_that_others_may_read_is_warned_of_until_it_is_mended(
    processes: Callable[..., Process],
) -> None:
    """Supervisors look for levels of the log, and probes for warnings of ``/readyz``."""
    worker = processes()
    secret = worker.folder / "secret"
    secret.write_text("correct-horse-battery")
    secret.chmod(0o644)
    worker.settings["peer_secret_file"] = str(secret)
    await apply(worker)
    worker.start()
    await worker.ready()
    _, state = await worker.get("/readyz")
    (warning,) = state["warnings"]
    assert f"run: chmod go-rwx {secret}" in warning
    (line,) = [line for line in worker.log().splitlines() if "holds secrets" in line]
    assert " WARNING " in line
    secret.chmod(0o600)
    assert (await worker.get("/readyz"))[1]["warnings"] == []
    assert await worker.stop() == 0


async def test_a_web_port_that_is_taken_is_named(processes: Callable[..., Process]) -> None:
    """Another worker of this machine has it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        worker = processes(web_port=str(port))
        worker.start()
        assert await worker.ended() == 1
    assert re.match(
        rf"cannot listen for queries: .*in use; got 127\.0\.0\.1:{port}; want .* set .*web_port",
        last_words(worker),
    )


async def test_an_archive_folder_in_use_is_named(processes: Callable[..., Process]) -> None:
    """Two processes must not write to one embedded archive."""
    worker = processes()
    await apply(worker)
    archive = EmbeddedArchive(worker.folder / "archive")
    await archive.open(load_map(worker.map_file))
    worker.start()
    assert await worker.ended() == 1
    await archive.close()
    assert re.match(
        rf"cannot open archive in {worker.folder}/archive: .*another worker", last_words(worker)
    )


async def test_a_topic_with_other_partitions_is_refused_at_the_start(
    processes: Callable[..., Process],
) -> None:
    """Later it would fail at a journal partition that is not there."""
    worker = processes()
    await apply(worker)
    worker.map_file.write_text(
        worker.map_file.read_text().replace("partitions = 2", "partitions = 3", 1)
    )
    worker.start()
    assert await worker.ended() == 1
    assert f"topic {worker.map_name}.raw: wrong number of partitions; got 2; want 3" in last_words(
        worker
    )


async def test_what_must_not_be_continued_ends_the_worker_with_its_reason(
    processes: Callable[..., Process],
) -> None:
    """A journal that a later map has begun; a record of a later format, whose cells would be lost.

    The second one is met by an agent, which must not skip it.
    """
    later_map, later_format = processes(), processes()
    await asyncio.gather(apply(later_map), apply(later_format))
    claim = encode_entry(Claim(revision=2, digest="another", partitions=2, base=0))
    name = later_map.map_name
    await later_map.send(f"{name}.journal.{name}.raw", (1, claim))
    await later_format.send(f"{later_format.map_name}.layer.day", (0, seal(9, b"junk")))
    later_map.start()
    later_format.start()
    assert await later_map.ended() == 1
    assert await later_format.ended() == 1
    assert last_words(later_map).startswith(
        f"cannot claim {name}.raw[1]: its journals are at map revision 2; got 1; "
    )
    assert last_words(later_format).startswith("cannot read layer topic: got format 9; want 2; ")


BUG = """
from mode import Service
from app.runtime.worker_process import WorkerProcess
from app.config.settings import load_settings
from app.runtime.wiring import build

class Broken(Service):
    async def on_start(self):
        raise ValueError("a bug")

app = build(load_settings())
app.own_services[:] = [Broken()]
WorkerProcess(app, loglevel="INFO").execute_from_commandline()
"""


async def test_an_error_that_nobody_foresaw_is_shown_with_its_traceback(
    processes: Callable[..., Process],
) -> None:
    """The last words are its name; its traceback stands above."""
    worker = processes()
    worker.start((sys.executable, "-c", BUG))
    assert await worker.ended() == 1
    assert worker.log().splitlines()[-1] == "error: ValueError('a bug')"
    assert "Traceback" in worker.log()


async def test_workers_with_embedded_archives_do_not_share_a_group(
    processes: Callable[..., Process],
) -> None:
    """Each would archive cells that the other cannot read; one that sees another says so."""
    one = processes(node="one")
    await apply(one)
    two = processes(node="two", group=one.map_name, map_file=str(one.map_file))
    one.start()
    two.start()
    ends = {asyncio.create_task(worker.ended()): worker for worker in (one, two)}
    # The other one may find itself alone again, and then goes on.
    done, others = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in done:
        assert end.result() == 1
        words = last_words(ends[end])
        assert words.startswith(
            f"cannot share group {one.map_name}: its archive is embedded and serves one worker "
            "only; set archive to cassandra"
        )
        assert words.endswith("got nodes one, two")
    for worker in (one, two):
        worker.close()
    await asyncio.gather(*others)


class _SlowArchive:
    """An archive that opens until it is closed, and then says that it could not."""

    def __init__(self) -> None:
        self.opening = asyncio.Event()
        self._closed = asyncio.Event()

    async def open(self, themap: Map) -> None:
        self.opening.set()
        try:
            await self._closed.wait()
        finally:
            raise ArchiveError(f"cannot open archive of map {themap.name}: it was closed meanwhile")

    async def close(self) -> None:
        self._closed.set()


def _nobody(error: BaseException) -> None:
    raise AssertionError(f"nothing fails in the background here: {error}")


class _AwayArchive:
    """An archive that does not answer at first, and then opens or refuses."""

    def __init__(self, times: int, error: ArchiveError | None = None) -> None:
        self.times = times
        self.error = error
        self.is_open = False

    async def open(self, themap: Map) -> None:
        self.times -= 1
        if self.times >= 0:
            raise ArchiveAwayError(f"cannot open archive of map {themap.name}: nobody answers")
        if self.error is not None:
            raise self.error
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False


class _Still:
    """A log whose connection is nobody's business here."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


@pytest.mark.parametrize("asked_to_stop", [True, False])
async def test_what_fails_because_the_worker_stops_is_no_failure(asked_to_stop: bool) -> None:
    """An archive that is closed while it opens ends the start; one that fails alone fails it."""
    archive = _SlowArchive()

    async def check() -> None: ...

    foundation = StorageService(
        cast(KafkaLog, _Still()), cast(Archive, archive), small_map(), check, _nobody,
        opened_late=check,
    )  # fmt: skip
    starting = asyncio.create_task(foundation.start())
    await archive.opening.wait()
    if asked_to_stop:
        await foundation.stop()
        await starting
    else:
        await archive.close()
        with pytest.raises(ArchiveError, match="closed meanwhile"):
            await starting
        await foundation.stop()


@pytest.mark.parametrize("times", [0, 1, 3])
async def test_an_archive_that_is_away_at_the_start_is_opened_once_it_answers(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The worker starts meanwhile; stopping ends the attempts."""
    monkeypatch.setattr(wiring, "REOPEN_S", (0.0, 0.01))
    archive = _AwayArchive(times)

    async def check() -> None: ...

    foundation = StorageService(
        cast(KafkaLog, _Still()), cast(Archive, archive), small_map(), check, _nobody,
        opened_late=check,
    )  # fmt: skip
    await foundation.start()
    assert archive.is_open is (times == 0)

    async def is_open() -> bool:
        return archive.is_open

    await until(is_open)
    await foundation.stop()
    assert not archive.is_open


async def test_an_archive_that_refuses_once_it_answers_stops_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Waiting longer would not help."""
    monkeypatch.setattr(wiring, "REOPEN_S", (0.0, 0.01))
    refused = ArchiveError("cannot open archive: its table has other columns")
    told: list[BaseException] = []

    async def check() -> None: ...

    foundation = StorageService(
        cast(KafkaLog, _Still()), cast(Archive, _AwayArchive(2, refused)), small_map(), check,
        told.append, opened_late=check,
    )  # fmt: skip
    await foundation.start()

    async def is_told() -> bool:
        return told == [refused]

    await until(is_told)
    await foundation.stop()
