"""Nothing of Faust's own, neither a variable nor an option, wins over the worker's settings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import faust
import orjson
import pytest

from tests import ROOT
from tests.support.worker_process import FAUST, MAP, Process, apply

SHOW = """
import faust, orjson, sys
from app.config.settings import load_settings
from app.runtime.wiring import build

conf = build(load_settings(environ={})).conf
sys.stdout.buffer.write(orjson.dumps({name: str(getattr(conf, name)) for name in conf.SETTINGS}))
"""
OPTIONS = [
    ("--web-port", "7001"), ("--web-bind", "127.0.0.2"), ("--web-host", "other"),
    ("--web-transport", "unix:///tmp/other.sock"), ("--without-web",),
]  # fmt: skip


def variables() -> list[str]:
    """Return all that Faust reads from the environment."""
    names = [one.env_name for one in faust.Settings.SETTINGS.values() if one.env_name]
    bare = ["WEB_BIND", "WEB_PORT", "WEB_URL", "DATADIR", "WORKDIR", "DEBUG", "BLOCKING_TIMEOUT"]
    return sorted({*names, *(prefix + name for name in bare for prefix in ("", "F_", "FAUST_"))})


def shown(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Return Faust's settings in a worker that has these variables."""
    (folder / "map.toml").write_text(MAP.format(name="seal"))
    ours = {"TREASURE_MAP_MAP_FILE": "map.toml", "PYTHONPATH": str(ROOT)}
    kept = {name: value for name, value in os.environ.items() if "TREASURE_MAP" not in name}
    done = subprocess.run(
        [sys.executable, "-c", SHOW.replace("environ={}", f"environ={ours!r}")],
        cwd=folder, env=kept | ours | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = orjson.loads(done.stdout)
    return found


@pytest.mark.slow
def test_no_variable_of_fausts_changes_a_setting(tmp_path: Path) -> None:
    """There are some eighty; the address of the endpoint is among them."""
    names = variables()
    assert {"WEB_BIND", "WEB_PORT", "APP_DATADIR"} <= set(names)
    plain = shown(tmp_path, {})
    assert plain["web_bind"] == "127.0.0.1"
    changed = shown(tmp_path, dict.fromkeys(names, "7"))
    # The first is drawn anew for each App; the other is how variables would begin.
    differing = {name for name in plain if plain[name] != changed[name]}
    assert differing <= {"reply_to", "env_prefix"}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option[0])
def test_an_option_of_fausts_is_refused(tmp_path: Path, option: tuple[str, ...]) -> None:
    """It is refused before anything listens; the message names our setting."""
    (tmp_path / "map.toml").write_text(MAP.format(name="seal"))
    kept = {name: value for name, value in os.environ.items() if "TREASURE_MAP" not in name}
    ours = {"TREASURE_MAP_MAP_FILE": "map.toml", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*FAUST, *option], cwd=tmp_path, env=kept | ours, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: cannot use options of Faust's own: got web_")
    assert "Traceback" not in done.stderr


def listening(pid: int) -> set[tuple[str, int]]:
    """Return addresses and ports on which a process listens."""
    files = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.exists()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in files:
                address, _, port = local.partition(":")
                found.add((address, int(port, 16)))
    return found


async def test_only_the_settings_address_is_listened_on(
    processes: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faust's own command line binds it to loopback, whatever variables say."""
    monkeypatch.setenv("WEB_BIND", "0.0.0.0")  # noqa: S104 - to see that it is not bound
    monkeypatch.setenv("WEB_PORT", "7001")
    worker = processes()
    await apply(worker)
    worker.start(FAUST)
    await worker.ready()
    loopback = "0100007F"
    assert listening(worker.running.pid) == {(loopback, worker.port)}
    assert await worker.stop() == 0


async def test_a_worker_prints_no_warning(processes: Callable[..., Process]) -> None:
    """Neither its start nor its end, of Python's own; a log that warns each time is not read."""
    worker = processes()
    await apply(worker)
    worker.start()
    await worker.ready()
    assert await worker.stop() == 0
    assert [line for line in worker.log().splitlines() if "Warning" in line] == []
