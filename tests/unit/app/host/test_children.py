"""Child processes end with their parent, whether it stops them or is killed."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from app.host.children import start_child, stop_child
from tests import ROOT
from tests.support.waiting import wait_gone


def test_a_child_ends_when_it_is_asked_to(tmp_path: pathlib.Path) -> None:
    """Its exit code says by which signal, and stopping again says the same."""
    with (tmp_path / "log").open("wb") as log:
        process = start_child(["sleep", "600"], log, os.environ)
        assert stop_child(process, 10) == -signal.SIGTERM
        assert stop_child(process, 10) == -signal.SIGTERM


def test_a_child_that_does_not_listen_is_made_to_end(tmp_path: pathlib.Path) -> None:
    """It is killed after the time that it is given."""
    out = tmp_path / "log"
    with out.open("wb") as log:
        process = start_child(
            ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"], log, os.environ
        )
        deadline = time.monotonic() + 20
        pause = threading.Event()
        while not out.read_bytes() and time.monotonic() < deadline:
            pause.wait(0.02)
        assert out.read_bytes() == b"deaf\n"
        assert stop_child(process, 0.1) == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_child_does_not_outlive_a_parent_that_is_killed() -> None:
    """The parent gets no chance to stop anything."""
    code = (
        "import os, sys, signal; from app.host.children import start_child;"
        "child = start_child(['sleep', '600'], sys.stderr.buffer, os.environ);"
        "print(child.pid, flush=True);"
        "signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    wait_gone(pid)
