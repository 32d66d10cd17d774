"""The commands of the Makefile: a process of tests that dies ends the run, with its name."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

TESTS = """
import os
import pytest

@pytest.mark.parametrize("number", range(4))
def test_alone(number):
    pass

@pytest.mark.xdist_group("servers")
@pytest.mark.parametrize("number", range(3))
def test_of_a_server(number):
    if number == 1:
        os.abort()
"""


@pytest.mark.slow
def test_a_process_of_tests_that_dies_ends_the_run(tmp_path: Path) -> None:
    """The run names the test and prints its traceback; a new process in its place would hang."""
    (tmp_path / "test_dies.py").write_text(TESTS)
    found = re.search(r"^PROCESSES = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:schemathesis",
         *shlex.split(found[1]), "test_dies.py"],
        cwd=tmp_path, check=False, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    assert "crashed while running 'test_dies.py::test_of_a_server[1]" in run.stdout
    assert "Fatal Python error: Aborted" in run.stderr
