"""requirements.lock: each package in one version, and no file of it but those that are known."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT

HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pins() -> Iterator[tuple[Requirement, list[str]]]:
    """Yield each package of the lock with the hashes of its files."""
    text = (ROOT / "requirements.lock").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for whole in "\n".join(lines).replace("\\\n", "").splitlines():
        requirement, *hashes = whole.split()
        yield Requirement(requirement), hashes


def test_every_package_has_one_version_and_the_hashes_of_its_files() -> None:
    """So pip refuses a file that was changed since, wherever it comes from."""
    names = []
    for requirement, hashes in pins():
        names.append(canonicalize_name(requirement.name))
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        assert requirement.url is None
        assert hashes, f"{requirement} has no hash; run make lock"
        assert all(HASH.fullmatch(one) for one in hashes), requirement
        assert len(set(hashes)) == len(hashes)
    assert len(names) > 80
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", ["Makefile", "Dockerfile", "docs/DEPLOYING.md"])
def test_whoever_installs_the_lock_checks_hashes(path: str) -> None:
    """Each command that pip is given says so, whatever the lock holds."""
    text = (ROOT / path).read_text("utf-8").replace("\\\n", " ")
    commands = [line for line in text.splitlines() if re.search(r"--requirement \S+\.lock", line)]
    assert commands
    assert all("--require-hashes" in line and "--no-deps" in line for line in commands)
