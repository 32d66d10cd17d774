"""Distributions as people get them: sdist and wheel, and environments that they are put into."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from tests import ROOT

_BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def tracked(*paths: str) -> list[str]:
    """Return the files that git has or would take, below these paths or everywhere."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *paths],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return [name for name in listed if (ROOT / name).is_file()]


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """Run a command that must succeed, without this environment's paths; return its output."""
    done = attempt(*command, cwd=cwd, **variables)
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def attempt(
    *command: str | Path, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command without this environment's paths and settings."""
    ours = ("PYTHON", "TREASURE_MAP", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        command, cwd=cwd, env=environment | variables,
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


def build(folder: Path) -> tuple[Path, Path]:
    """Make the sdist of all tracked files, and the wheel of the sdist; return both."""
    source = folder / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-c", _BUILD_SDIST, folder, cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--no-index", "--wheel-dir", folder, sdist,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def make_environment(
    folder: Path, wheel: Path, distributions: Iterable[str], extra: str = ""
) -> Path:
    """Install a wheel, with an extra if one is named, into a new environment.

    Returns the environment's interpreter.

    Of this environment's packages it has just these, of one top-level package each. The installer
    gets no others: it fails if the wheel needs more.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    linked = folder / "linked"
    linked.mkdir()
    for name in distributions:
        files = metadata.files(name) or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            (linked / top).symlink_to(str(metadata.distribution(name).locate_file(top)))
    (packages / "linked.pth").write_text(f"{linked}\n")
    python = folder / "bin" / "python"
    wanted = f"{wheel}[{extra}]" if extra else str(wheel)
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", wanted)
    return python
