"""Waits for a condition, with a deadline."""

from __future__ import annotations

import pathlib
import threading
import time

import pytest


def wait_gone(pid: int) -> None:
    """Wait until no process has ``pid``, or it is only waiting to be collected."""
    deadline = time.monotonic() + 20
    pause = threading.Event()
    while time.monotonic() < deadline:
        try:
            status = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if status == "Z":
            return
        pause.wait(0.02)
    pytest.fail(f"process {pid} is still there")
