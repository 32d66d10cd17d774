"""The watchdog, in processes of its own: those that it ends, how, and those it leaves alone."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.host.watchdog import EXIT_CODE
from tests import ROOT
from tests.support.waiting import until

STALL_SECONDS_MAX = 0.5
SECONDS_MAX = 30.0
PROGRAM = """
import asyncio, signal, sys, threading, time
from app.host import watchdog

def spin():
    while True:
        pass

def beats(loop):
    print("beat", flush=True)
    loop.call_later(0.1, beats, loop)

async def run(stuck):
    dog.start(asyncio.get_running_loop())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: sys.exit(7))
    print("up", flush=True)
    stuck(loop)
    await asyncio.sleep(3600)

async def end():
    dog.start(asyncio.get_running_loop())

def hang():
    watchdog.LEAVE_SECONDS_MAX = 0.5
    threading.Thread(target=threading.Event().wait).start()
    asyncio.run(end())
    dog.leave()

STUCK = {
    "sleep": lambda loop: loop.call_soon(lambda: time.sleep(3600)),
    "spin": lambda loop: loop.call_soon(spin),
    # A sum in C keeps the interpreter's lock to its end.
    "native": lambda loop: loop.call_soon(sum, range(10**12)),
    "mute": lambda loop: (sys.stderr.write("x" * 70_000), None),
    "none": beats,
}
dog = watchdog.Watchdog(float(sys.argv[2]))
hang() if sys.argv[1] == "hang" else asyncio.run(run(STUCK[sys.argv[1]]))
"""


class Child:
    """A process with an event loop under watch."""

    def __init__(self, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, kind, str(STALL_SECONDS_MAX)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True,
        )  # fmt: skip

    def says(self, line: str) -> None:
        """Wait for the next line that it writes; an end of the process is another line."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{line}\n"

    def end(self) -> tuple[int, str]:
        """Wait for the end; return exit code and the text on standard error."""
        _, errors = self.process.communicate(timeout=SECONDS_MAX)
        return self.process.returncode, errors

    def state(self) -> str:
        """Return the state of the process as the kernel names it: T is stopped."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Yield a list of children; kill all of them after the test."""
    made: list[Child] = []
    yield made
    for child in made:
        child.process.kill()
        child.process.communicate()


@pytest.mark.parametrize("kind", ["sleep", "spin"])
def test_a_loop_that_stands_still_ends_the_process_with_its_place(
    children: list[Child], kind: str
) -> None:
    """Waiting or busy: the last words name the place, the stacks of all threads stand above."""
    children.append(child := Child(kind))
    code, errors = child.end()
    assert code == EXIT_CODE
    assert "MainThread (most recent call last):\n" in errors
    assert 'File "<string>", line' in errors
    assert re.match(
        r"error: cannot stay in the group: the event loop stands still at <string>:\d+ "
        r"\(.*(lambda>|spin)\); got 0\.\d s; want at most session_timeout_ms, 0\.5 s; ",
        errors.splitlines()[-1],
    ), errors


def test_native_code_that_keeps_the_interpreter_is_ended_by_the_kernel(
    children: list[Child],
) -> None:
    """No Python runs then: the timer of CPU time writes the stacks and ends the process."""
    children.append(child := Child("native"))
    code, errors = child.end()
    assert code == -signal.SIGPROF
    assert re.search(r"Current thread .*\n  File", errors), errors


async def test_a_process_that_was_stopped_goes_on(children: list[Child]) -> None:
    """The stop may be long: neither thread nor loop ran, so nothing stood still."""
    children.append(child := Child("none"))
    child.says("up")
    for _ in range(2):
        child.process.send_signal(signal.SIGSTOP)
        stopped_s = time.monotonic()

        async def slept() -> bool:
            long_enough = time.monotonic() > stopped_s + 3 * STALL_SECONDS_MAX  # noqa: B023
            return child.state() == "T" and long_enough

        await until(slept)
        child.process.send_signal(signal.SIGCONT)
        # It runs for twice the time in which a watchdog that counted the pause would end it.
        for _ in range(10):
            child.says("beat")
    child.process.send_signal(signal.SIGTERM)
    assert child.end()[0] == 7


def test_last_words_that_nobody_reads_do_not_keep_the_process(children: list[Child]) -> None:
    """The loop stands still because its log goes into a full pipe; so would the last words."""
    children.append(child := Child("mute"))
    child.says("up")
    assert child.process.wait(SECONDS_MAX) == EXIT_CODE


def test_threads_that_hang_do_not_keep_a_process_whose_loop_has_ended(
    children: list[Child],
) -> None:
    """A driver's or disk's thread is joined at the exit, which it would keep for ever."""
    children.append(child := Child("hang"))
    code, errors = child.end()
    assert code == EXIT_CODE
    assert errors.splitlines()[-1].startswith("error: cannot end: threads still run 0."), errors
