"""The Faust App: its agents, web, command line and services; its own Kafka side stays off.

Faust's producer, consumer, conductor, tables and recovery are not started; Kafka is read by
``app.kafka.transport``, one of the App's services. Agents are real agents, on channels of chunks.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import faust
from faust.app.base import BootStrategy
from mode import Service

from agents.supervised import supervised
from app.kafka.aiokafka_private import report_broken_connections
from app.kafka.lane import Lane
from app.trust.secret_files import readable_secrets
from app.web.listener import Site
from app.web.server import Counts, Runner
from tables.record.chunk import Chunk

log = logging.getLogger(__name__)

Handler = Callable[[Chunk], Awaitable[None]]
AGENTS = ("ingest", "rollup")
"""The agents: of raw topics, and of layer topics."""


class _OwnKafkaBoot(BootStrategy):  # type: ignore[misc]  # faust comes without types
    """Starts everything of Faust but Kafka, then our own services; they stop in reverse."""

    enable_kafka = False

    def server(self) -> Iterable[Any]:
        """Return the services in the order they start."""
        return itertools.chain(super().server(), self.app.own_services)


class OwnSettings(faust.Settings):  # type: ignore[misc]  # faust comes without types
    """Faust's settings as the worker gives them, whatever Faust's own variables and options say.

    Faust would let these, WEB_BIND or ``--web-port``, override the worker's settings, past all
    checks. Variables are not read; options come once the App is built and sealed.

    """

    # Faust warns of each attribute that is set after it was read, unless it is a private one.
    _refused: list[str] | None = None

    @property
    def refused(self) -> list[str]:
        """Return the options that asked for another value once sealed."""
        return self._refused or []

    def getenv(self, env_name: str) -> None:
        """Return nothing, whatever the variable says."""

    def seal(self) -> None:
        """Let nothing change any more."""
        self._refused = []

    def __setattr__(self, key: str, value: Any) -> None:
        """Set a setting, or refuse another value once sealed."""
        if self._refused is None or key not in self.SETTINGS:
            super().__setattr__(key, value)
        elif value != getattr(self, key):
            self._refused.append(f"{key} {value}")


class MapApp(faust.App):  # type: ignore[misc]  # faust comes without types
    """A Faust App with services of its own that start last and stop first.

    Attributes:
        own_services: the services to run; add to them before the App starts.
        chunks: the channel of each agent, by its name.
        accepting_failed: called with the error if the endpoint cannot accept any more.
        connections: the counts of connections to the endpoint.
        reload_files: checks all files that are read again when they change.
        stall_seconds_max: how long the event loop may stand still before the process is ended.
        secret_files: files that hold secrets; those that others may read are warned of.
    """

    BootStrategy = _OwnKafkaBoot
    Settings = OwnSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.own_services: list[Service] = []
        self.chunks: dict[str, Any] = {}
        self.accepting_failed: Callable[[BaseException], None] = _raise
        self.connections = Counts()
        self.reload_files: Callable[[], object] = int
        self.stall_seconds_max = 10.0
        self.secret_files: tuple[str, ...] = ()
        super().__init__(*args, **kwargs)

    async def on_start(self) -> None:
        """Open the channels: they stay shut until Faust's own consumer would open them."""
        for sentence in readable_secrets(self.secret_files):
            log.warning("%s", sentence)
        await super().on_start()
        self.flow_control.resume()


def _raise(error: BaseException) -> None:
    """Raise an error if there is no worker that it could stop."""
    raise error


def create_app(
    name: str,
    *,
    data_folder: Path,
    web_host: str = "127.0.0.1",
    web_port: int = 6066,
    web_tls: ssl.SSLContext | None = None,
    web_followers_max: int = 64,
    uvloop: bool = True,
) -> MapApp:
    """Return an App without agents; :func:`add_agent` and ``own_services`` fill it.

    At most ``web_followers_max`` streams have no end; without ``web_tls`` the endpoint is HTTP.
    """
    if uvloop:
        _use_uvloop()
    app = MapApp(
        name,
        datadir=str(data_folder),
        topic_disable_leader=True,
        web_enabled=True,
        web_bind=web_host,
        web_host=web_host,
        web_port=web_port,
        web_ssl_context=web_tls,
        # Faust's own views show more of the worker than a reader needs, without a token.
        web_router_enabled=False,
        web_tables_enabled=False,
        web_graph_enabled=False,
        web_stats_enabled=False,
        web_metrics_enabled=False,
    )
    # Faust's own server refuses cursors of long keys, and has no bounds.
    runner = Runner(app.web.web_app, web_followers_max)
    app.web._runner = runner  # noqa: SLF001 - there is no other way to its limits
    app.web._transport_handlers["tcp"] = lambda: Site(  # noqa: SLF001 - nor to its listener
        runner, app.conf.web_bind, app.conf.web_port, tls=app.conf.web_ssl_context,
        failed=app.accepting_failed,
    )  # fmt: skip
    app.connections = runner.counts
    for agent in AGENTS:
        # One waiting chunk at most: the transport hands over only to an agent that is idle.
        app.chunks[agent] = app.channel(maxsize=1)
    return app


def add_agent(
    app: MapApp, lane: Lane, handler: Handler, failed: Callable[[BaseException], None]
) -> None:
    """Register the agent of a lane: it awaits ``handler`` for every chunk, one after the other.

    ``failed`` is called with an error of the handler: Faust alone would start the agent again and
    skip the chunk; the worker must stop instead.
    """

    async def agent(chunks: Any) -> None:
        lane.attach()
        async for chunk in chunks:
            await supervised(lane.handle(chunk, handler), failed)

    agent.__doc__ = f"Take the chunks of {len(lane.topics)} topics, one at a time."
    app.agent(app.chunks[lane.name], name=lane.name)(agent)


def _use_uvloop() -> None:
    """Make uvloop the event loop of this process if it is installed."""
    with contextlib.suppress(ImportError):
        asyncio.set_event_loop_policy(importlib.import_module("uvloop").EventLoopPolicy())
        report_broken_connections()
