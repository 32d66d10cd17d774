"""The systemd unit, against the program that it runs."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.config.settings import ENVIRONMENT_PREFIX, load_settings
from tests.support.compose_file import ROOT
from tests.support.deploy_support import STOP_SECONDS, parse_command

UNIT = ROOT / "deploy" / "treasure-map@.service"


def unit() -> dict[str, list[str]]:
    """Return every field of the unit, whatever its section, with its values in their order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text("utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def instance_environment(instance: str) -> dict[str, str]:
    """Return the settings that an instance of the unit gets, specifiers put in."""
    words = [word for line in unit()["Environment"] for word in shlex.split(line)]
    specifiers = {"%i": instance, "%H": "host", "%S": "/var/lib"}
    for specifier, value in specifiers.items():
        words = [word.replace(specifier, value) for word in words]
    assert not any("%" in word for word in words)
    pairs = dict(word.split("=", 1) for word in words)
    return {name: value for name, value in pairs.items() if name.startswith(ENVIRONMENT_PREFIX)}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_takes_the_unit_and_finds_it_closed(tmp_path: Path) -> None:
    """No complaint about any field, and less exposed than 2.0 of 10."""
    for path in (UNIT, UNIT.with_name("treasure-map.target")):
        name = path.name.replace("@", "@3")
        text = path.read_text("utf-8").replace("/opt/treasure-map/bin/python", sys.executable)
        (tmp_path / name).write_text(text)
    instance = str(tmp_path / "treasure-map@3.service")
    for command in (
        ["verify", "--man=no", "--recursive-errors=no", instance],
        ["security", "--offline=yes", "--threshold=20", "--no-pager", instance],
    ):
        done = subprocess.run(
            ["systemd-analyze", *command], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_instances_of_the_unit_do_not_share_anything() -> None:
    """Node, port, folders and core are of the instance's number, up to two digits."""
    instances = [load_settings(environ=instance_environment(name)) for name in ("0", "1", "12")]
    assert [settings.web_port for settings in instances] == [6060, 6061, 60612]
    for field in ("node", "state_folder", "archive_folder"):
        assert len({getattr(settings, field) for settings in instances}) == len(instances)
    folders = Path("/var/lib") / unit()["StateDirectory"][0].replace("%i", "12")
    assert instances[-1].state_folder.is_relative_to(folders)
    assert unit()["CPUAffinity"] == ["%i"]


def test_the_unit_runs_a_worker_without_root_and_lets_it_end() -> None:
    """The command exists; the signal is the one that a worker ends on, with time to do so."""
    fields = unit()
    program, *arguments = shlex.split(fields["ExecStart"][0])
    assert program == "/opt/treasure-map/bin/python"
    assert arguments[:2] == ["-m", "app"]
    parse_command(arguments[2:])
    assert fields["DynamicUser"] == ["yes"]
    assert fields["ProtectSystem"] == ["strict"]
    assert fields["NoNewPrivileges"] == ["yes"]
    assert fields["KillSignal"] == ["SIGTERM"]
    assert fields["Restart"] == ["on-failure"]
    assert int(fields["TimeoutStopSec"][0]) >= STOP_SECONDS
