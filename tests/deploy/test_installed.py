"""The worker starts only with packages of its own: others have packages of the same names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.package_support import attempt
from tests.support.worker_process import FAUST
from treasure_map.installed import WORKER_PACKAGES

FOREIGN = '"""Tables of somebody else."""\nraise RuntimeError("somebody else\'s code ran")\n'
MODULE = (sys.executable, "-m", "app", "worker")
COMMAND = (sys.executable, "-m", "treasure_map", "worker")


def start(*command: str, path: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command with these folders as the first of the path."""
    return attempt(*command, cwd=cwd, PYTHONPATH=path, PYTHONSAFEPATH="1")


def foreign(folder: Path, name: str) -> Path:
    """Write a package of somebody else; return its file."""
    file = folder / name / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text(FOREIGN)
    return file


@pytest.mark.parametrize(
    ("command", "name"),
    [(COMMAND, name) for name in WORKER_PACKAGES]
    + [(command, name) for command in (MODULE, FAUST) for name in ("agents", "tables")],
)
def test_a_worker_does_not_start_among_packages_of_somebody_else(
    tmp_path: Path, command: tuple[str, ...], name: str
) -> None:
    """One sentence names the file and the remedy; none of its code runs."""
    file = foreign(tmp_path, name)
    done = start(*command, path=f"{tmp_path}:{ROOT}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: cannot start treasure-map: the package {name} is not that of the worker; got"
        f" {file}; want {ROOT / name / '__init__.py'} of Treasure Map; take the other one off"
        " PYTHONPATH, or make an environment of the worker's own, and there run: pip install"
        ' "treasure-map[worker]"\n'
    )


def test_a_worker_does_not_start_with_a_package_that_was_overwritten(tmp_path: Path) -> None:
    """Another distribution with this name was put into the same environment."""
    for name in {*WORKER_PACKAGES, "treasure_map"} - {"tables"}:
        (tmp_path / name).symlink_to(ROOT / name)
    file = foreign(tmp_path, "tables")
    done = start(*COMMAND, path=str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    assert f"the package tables is not that of the worker; got {file}; want " in done.stderr


def test_a_worker_does_not_start_without_its_packages(tmp_path: Path) -> None:
    """Only the library was copied."""
    (tmp_path / "treasure_map").symlink_to(ROOT / "treasure_map")
    done = start(*COMMAND, path=str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    assert "the package app is not that of the worker; got no such package; want" in done.stderr
