"""Child processes that never outlive their parent, however it ends.

A child is a session of its own: Ctrl-C in a terminal reaches the parent only, which then stops its
children in order. If the parent is killed and cannot, Linux kills the child (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

# From linux/prctl.h.
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """A child process and the file of its output; a subclass starts it."""

    def __init__(self, stop_seconds_max: float) -> None:
        self._stop_seconds_max = stop_seconds_max
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process id while the child runs, else None."""
        return self._process.pid if self._process is not None else None

    def stop(self) -> int:
        """Stop the process and return its exit code; stopping again returns 0."""
        process, self._process = self._process, None
        code = stop_child(process, self._stop_seconds_max) if process is not None else 0
        if self._log is not None:
            self._log.close()
            self._log = None
        return code


def start_child(
    arguments: Sequence[str],
    output: IO[bytes],
    environment: Mapping[str, str],
    folder: pathlib.Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that has no input and writes output and errors to ``output``.

    To be called from the main thread: the kernel kills the child when the thread that started it
    ends. It has these environment variables alone, and the present folder if none is given.
    """
    parent = os.getpid()

    def end_with_parent() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            # The parent may have ended before the line above.
            if os.getppid() != parent:
                os._exit(1)

    return subprocess.Popen(  # noqa: S603  # callers name the program
        list(arguments),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=folder,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - between fork and exec it takes no lock
    )


def stop_child(process: subprocess.Popen[bytes], seconds_max: float) -> int:
    """Ask a child to end, make it end after ``seconds_max``, and return its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            return process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
