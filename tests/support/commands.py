"""Commands of the program as processes, and their output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests import ROOT
from tests.support import servers


@contextmanager
def running(
    *arguments: str | Path, stderr: int = subprocess.STDOUT
) -> Iterator[subprocess.Popen[str]]:
    """Run a command of the program as a process; its errors go to the output, or to a file."""
    (port,) = servers.free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT,
        env=os.environ | {"TREASURE_MAP_WEB_PORT": str(port)},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(output: IO[str] | None, line: str) -> str:
    """Return all that a process says up to a line with this text."""
    assert output is not None
    said = ""
    while line not in said:
        more = output.readline()
        assert more, f"it ended after:\n{said}"
        said += more
    return said
