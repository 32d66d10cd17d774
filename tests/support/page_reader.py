"""Pages of docs/ that are run: their commands in order, in a folder of the test's own."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from tests import ROOT
from tests.support import servers
from tests.support.waiting import wait_until

SECONDS_MAX = 240
_STEP = re.compile(r"^ *```sh\n(.*?)^ *```$|\b[Ee]nd `(\w+)` with Ctrl-C", re.DOTALL | re.MULTILINE)
_HERE = re.compile(r"<<'?(\w+)'?")
_SERVER = re.compile(r"python -m app (try|broker|worker)\b(?!.*--seconds)")
_READY = {"try": "it serves queries until Ctrl-C", "broker": "Ctrl-C ends it"}
_ENDED = (0, 130)

Check = Callable[[str], bool]


class Step(NamedTuple):
    """One thing that a page lets its reader do: a command, or the end of a server."""

    command: str = ""
    ended: str = ""


def steps(page: str) -> Iterator[Step]:
    """Yield the steps of a page in order."""
    for block, ended in _STEP.findall(page):
        if ended:
            yield Step(ended=ended)
        else:
            yield from (Step(command) for command in commands(textwrap.dedent(block)))


def commands(block: str) -> Iterator[str]:
    """Yield the commands of a block, each with the lines that it continues on."""
    lines = iter(block.splitlines())
    for line in lines:
        command = line
        while command.endswith("\\"):
            command += "\n" + next(lines)
        if here := _HERE.search(command):
            for more in lines:
                command += "\n" + more
                if more == here[1]:
                    break
        if command.strip():
            yield command


class Reader:
    """Does as a page says, in ``folder``, on ports of its own.

    Args:
        folder: the working folder.
        names: texts of the page, and the texts that stand for them here.

    Attributes:
        url: the address of the worker.
    """

    def __init__(self, folder: Path, names: Mapping[str, str]) -> None:
        self._folder = folder
        web, broker = servers.free_ports(2)
        self.url = f"http://127.0.0.1:{web}"
        self._names = {
            **names,
            "127.0.0.1:6066": f"127.0.0.1:{web}",
            "127.0.0.1:9092": f"127.0.0.1:{broker}",
            "python -m app query": f"python -m app query --url {self.url}",
            "python -m app broker": f"python -m app broker --port {broker}",
        }
        self._environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TREASURE_MAP_WEB_PORT": str(web),
            "TREASURE_MAP_BROKERS": f"127.0.0.1:{broker}",
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def follow(self, step: Step, check: Check | None = None) -> str:
        """Do a step; return the output of its command.

        A command with a check is repeated until its output passes: workers are still at work.
        """
        if step.ended:
            self._end(step.ended)
            return ""
        text = self._named(step.command)
        if server := _SERVER.match(text):
            return self._start(server[1], text)
        output = self._run(text)
        if check is not None and not check(output):
            found = [output]

            def passes() -> bool:
                found[0] = self._run(text)
                return check(found[0])

            try:
                wait_until(passes, SECONDS_MAX, f"the right output of {text}")
            except TimeoutError as error:
                raise AssertionError(f"{text}\ngives\n{found[0]}") from error
            output = found[0]
        return output

    def _named(self, text: str) -> str:
        pattern = "|".join(map(re.escape, sorted(self._names, key=len, reverse=True)))
        return re.sub(pattern, lambda found: self._names[found[0]], text)

    def _run(self, text: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", text], cwd=self._folder, env=self._environment, check=False,
            capture_output=True, text=True, timeout=SECONDS_MAX,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _start(self, name: str, text: str) -> str:
        """Start a server; return its output when it serves."""
        assert name not in self._running, f"the page starts {name} twice"
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            self._running[name] = process = subprocess.Popen(
                shlex.split(text), cwd=self._folder, env=self._environment,
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

        def serves() -> bool:
            said = log.read_text("utf-8")
            assert process.poll() is None, f"{text} ended:\n{said}"
            return _READY[name] in said if name in _READY else self._answers()

        wait_until(serves, SECONDS_MAX, f"{text} to serve")
        return log.read_text("utf-8")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5):  # noqa: S310 - own http
                return True
        except OSError:
            return False

    def _end(self, name: str) -> None:
        process = self._running.pop(name)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS_MAX) in _ENDED, (self._folder / f"{name}.log").read_text()


def table(output: str) -> list[list[str]]:
    """Return the rows of a printed table as the texts of their columns."""
    lines = [line for line in output.splitlines() if line.startswith("│")]
    return [[one.strip() for one in line.strip("│").split("│")] for line in lines]
