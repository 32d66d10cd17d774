"""The program says its version, and calls itself by the name it was called by."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tables.called import MODULE, SCRIPT, called
from tests import ROOT
from tests.support.deploy_support import project


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/opt/treasure-map/bin/treasure-map", SCRIPT),
        ("C:/treasure-map/Scripts/treasure-map.exe", SCRIPT),
        ("/opt/lib/treasure_map/__main__.py", SCRIPT),
        ("/opt/treasure-map/lib/app/__main__.py", MODULE),
        ("/opt/treasure-map/bin/faust", MODULE),
        ("-c", MODULE),
    ],
)
def test_a_command_is_named_as_it_would_be_called(
    monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    """The name is the script's only if that runs; the module is there in any case."""
    monkeypatch.setattr(sys, "argv", [path, "map"])
    assert called() == name
    assert called("map acl") == f"{name} map acl"


@pytest.mark.parametrize(("module", "name"), [("treasure_map", SCRIPT), ("app", MODULE)])
def test_help_version_and_errors_have_the_name(module: str, name: str, tmp_path: Path) -> None:
    """The version is the project's."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    assert run("--help").stdout.startswith(f"Usage: {name} [OPTIONS] COMMAND")
    told = run("--version")
    assert (told.returncode, told.stdout) == (
        0,
        f"treasure-map {project()['project']['version']}\n",
    )
    assert run("token", "list", "--none").stderr.startswith(f"Usage: {name} token list ")
    file = tmp_path / "tokens.json"
    file.write_text("none")
    refused = run("token", "list", "--web-tokens-file", str(file))
    assert refused.returncode == 1
    assert f"want the file that `{name} token new` writes" in refused.stderr
