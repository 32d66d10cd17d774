"""The demo's worker: ``python -m app worker`` as a child process, and its answers over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import http
import http.client
import os
import pathlib
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from app.config.settings import (
    ENVIRONMENT_PREFIX,
    FIELDS,
    FILE_VARIABLE,
    environment_variable,
    load_settings,
)
from app.host.children import Child, start_child
from tables.model.errors import TreasureMapError
from tables.model.layer import Map
from treasure_map.query import QueryClient, QueryFailedError
from treasure_map.status import LayerStatus

READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0
# The port that README and the query command name; a free one if it is in use.
PORT = 6066
_POLL_SECONDS = 0.2
_ROOT = pathlib.Path(__file__).parent.parent.parent
_LOG_LINES = 15


class DemoError(TreasureMapError):
    """The worker or the broker of a demo could not continue, or the demo's check failed."""


class Missing(NamedTuple):
    """The thing that a wait still waits for, and its progress: any value that changes."""

    text: str
    progress: object = None


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """The state of the worker at one moment: answers of /v1/ledger and /v1/layers."""

    ledger: dict[str, Any]
    layers: list[LayerStatus]

    def events(self, themap: Map) -> int:
        """Return how many events of the sources have been applied.

        Those of layer topics, which the ledger's events count too, are contributions. Here a
        record of a source has one event.
        """
        return sum(
            row["with_events"]
            for source in themap.sources
            for row in self.ledger["records"].get(source.topic, {}).values()
        )

    @property
    def unacknowledged(self) -> int:
        """Closed windows that archive or layer topics have not acknowledged yet."""
        return sum(layer.unacknowledged_windows for layer in self.layers)

    @property
    def waiting_open(self) -> int:
        """Open windows whose cells archive or layer topics do not have as they are now."""
        return sum(layer.waiting_open_windows for layer in self.layers)

    def open_layers(self, ends: Mapping[str, int]) -> list[str]:
        """Return the layers of ``ends`` whose watermark is below the time given there."""
        watermarks = {layer.name: layer.watermark_ms for layer in self.layers}
        return [name for name, end in ends.items() if (watermarks[name] or 0) < end]

    def positions(self) -> dict[tuple[str, int], int]:
        """Return up to which offset each partition has been applied."""
        return {
            (topic, int(partition)): row["position"]
            for topic, partitions in self.ledger["records"].items()
            for partition, row in partitions.items()
        }


class DemoWorker(Child):
    """A worker over an embedded archive; use it in a ``with`` statement.

    Attributes:
        url: the address of its query endpoint.
        archive_folder: folder of its archive; free to open once it has stopped.
    """

    def __init__(
        self,
        brokers: str,
        map_file: pathlib.Path,
        folder: pathlib.Path,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """``settings`` are those that it gets beside the ones that are said here, by name.

        Raises:
            SettingError: a variable of the environment is not that of a setting.
        """
        super().__init__(STOP_SECONDS_MAX)
        # The worker gets no variable but its own, so it would not see one that is mistyped.
        settable = {FILE_VARIABLE, *map(environment_variable, FIELDS)}
        load_settings(environ={n: v for n, v in os.environ.items() if n not in settable})
        # The worker refuses anything but a port, with the words for every setting.
        port = os.environ.get(environment_variable("web_port")) or _port()
        self.url = f"http://127.0.0.1:{port}"
        self.archive_folder = folder / "archive"
        own = {
            "brokers": brokers,
            "map_file": str(map_file.absolute()),
            "state_folder": str(folder / "state"),
            "archive": "embedded",
            "archive_folder": str(self.archive_folder),
            "web_port": str(port),
            **settings,
        }
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(ENVIRONMENT_PREFIX)
        } | {environment_variable(name): value for name, value in own.items()}
        self._log_file = folder / "worker.log"

    def __enter__(self) -> Self:
        self._log = self._log_file.open("wb")
        command = [sys.executable, "-m", "app", "worker"]
        self._process = start_child(command, self._log, self._environment, _ROOT)
        return self

    def check(self) -> None:
        """Check that the process runs.

        Raises:
            DemoError: it has ended; the message has the last lines of its log.
        """
        assert self._process is not None, "the worker is used inside its with block"
        code = self._process.poll()
        if code is not None:
            raise DemoError(
                f"cannot continue: the worker ended; got exit code {code}; want it to"
                f" run until it is stopped; its last lines:\n{self._log_end()}"
            )

    async def ready(self) -> None:
        """Wait until the worker is restored and caught up.

        Raises:
            DemoError: it ended, or is not ready in time.
        """

        async def missing() -> Missing | None:
            return await asyncio.to_thread(self._not_ready)

        await self.wait(missing, READY_SECONDS_MAX)

    async def status(self) -> Status:
        """Ask the worker for its ledger, then for its layers.

        Raises:
            DemoError: it ended.
            QueryFailedError: it does not answer.
        """
        self.check()
        return await asyncio.to_thread(self._status)

    async def seen(self) -> Status | None:
        """Return the status; None if the worker does not answer now.

        Raises:
            DemoError: it ended.
        """
        try:
            return await self.status()
        except QueryFailedError:
            return None

    async def wait(
        self, condition: Callable[[], Awaitable[Missing | None]], seconds_max: float
    ) -> None:
        """Ask ``condition`` until nothing is missing any more.

        Raises:
            DemoError: the worker ended, or the condition said the same for ``seconds_max``.
        """
        before, deadline = None, 0.0
        while missing := await condition():
            self.check()
            if missing != before:
                before, deadline = missing, time.monotonic() + seconds_max
            elif time.monotonic() > deadline:
                raise DemoError(
                    f"cannot continue: nothing has moved for {seconds_max:.0f} s; got"
                    f" {missing.text}; the worker's log ends with:\n{self._log_end()}"
                )
            await asyncio.sleep(_POLL_SECONDS)

    def _not_ready(self) -> Missing | None:
        """Return the reason why the worker is not ready; None if it is ready."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=5)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            said = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            # It does not listen yet; whether it ever will, the deadline decides.
            return Missing(f"no answer from {self.url}: {error}")
        finally:
            connection.close()
        return None if answer.status == http.HTTPStatus.OK else Missing(said)

    def _status(self) -> Status:
        with QueryClient(self.url) as client:
            ledger = client.ledger()
            return Status(ledger, client.layers())

    def _log_end(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join(f"  {line}" for line in lines)


def _port() -> int:
    """Return the usual port, or a free one if it is in use."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise DemoError("cannot start a worker: no port of this machine is free")
