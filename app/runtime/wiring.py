"""A worker process, put together: archive, log, owners, agents, transport and web on one Faust App.

settings -> map -> archive, log -> owners -> ingest, rollup (agents) <- chunks <- transport
                                      `-> view -> web
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web
from mode import Service

from agents.ingest import Ingest
from agents.outage import Outage
from agents.partition.emit_counts import EmitCounts
from agents.partition.owners import PartitionManager
from agents.rollup import Rollup
from agents.supervised import supervised
from app.cluster.topics import check_topics
from app.config.archives import archive_of, why_alone
from app.config.connections import advertised_url, kafka_options, peers_tls
from app.config.settings import Settings, secrets_of
from app.health import readiness
from app.health.backpressure import Pressure
from app.health.watch import Watch, watch_of
from app.host.background import Background
from app.host.printable import protect_log
from app.host.reloads import Reloads
from app.kafka.brokers import patiently
from app.kafka.lane import Lane
from app.kafka.log import KafkaLog
from app.kafka.logins import hold_back_logins
from app.kafka.pace import Pace
from app.kafka.schema_registry import schemas_of
from app.kafka.transport import Transport
from app.kafka.transport_options import TransportOptions
from app.mapfile.load import load_map
from app.peers.remote_owners import Peers
from app.runtime.faust_app import MapApp, add_agent, create_app
from app.runtime.metrics import Metrics
from app.runtime.worker_log import announce
from app.runtime.worker_process import PRIVATE, WorkerProcess
from app.runtime.worker_status import WorkerStatus
from app.web.access import Access, peer_key
from app.web.endpoint import install
from app.web.guard import ssl_context
from app.web.listener import raise_files_limit
from tables.archive.cache import ArchiveCache
from tables.archive.protocol import Archive
from tables.model.errors import ArchiveAwayError, SettingError
from tables.model.layer import Map
from tables.model.limits import RECORD_BYTES_MAX
from tables.state.input_plan import plans_of
from tables.state.journal import Claimant
from tables.threads import Threads

log = logging.getLogger(__name__)

# One core a worker: more threads only slow the other workers of the machine.
os.environ.setdefault("POLARS_MAX_THREADS", "1")

REOPEN_S = (1.0, 5.0)
"""How long to wait before an archive that was away at the start is tried again."""


class StorageService(Service):  # type: ignore[misc]  # mode comes without types
    """Opens the log and the archive, which must be there before the first partition is restored.

    An archive that does not answer is waited for while the worker runs: cells wait in tables and
    journal, and ``/readyz`` says so. ``failed`` gets the reason why it can never be opened,
    ``outage`` the reason why it is away; ``opened_late`` is called when it was opened after the
    start.
    """

    def __init__(
        self,
        log: KafkaLog,
        archive: Archive,
        themap: Map,
        check: Callable[[], Awaitable[None]],
        failed: Callable[[BaseException], None],
        *,
        opened_late: Callable[[], Awaitable[None]],
        outage: Outage | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._opened_late = opened_late
        self._outage = outage or EmitCounts().archive
        self._log_client = log
        self._archive = archive
        self._map = themap
        self._check = check
        self._failed = failed
        self._opening: asyncio.Task[None] | None = None

    async def on_start(self) -> None:
        """Connect to Kafka, check the topics and open the archive, unless asked to stop."""
        try:
            await self.wait(self._open())
        except Exception as error:
            if not self.should_stop:
                raise
            log.info("not opened, because asked to stop: %s", error)

    async def _open(self) -> None:
        # Before a producer starts: without rights a broker refuses it without naming a topic.
        await self._check()
        await patiently(self._log_client.start)
        try:
            await self._archive.open(self._map)
        except ArchiveAwayError as error:
            self._outage.failed(error, "open")
            self._opening = asyncio.create_task(supervised(self._open_later(), self._failed))

    async def _open_later(self) -> None:
        while not self._archive.is_open:
            await asyncio.sleep(random.uniform(*REOPEN_S))  # noqa: S311 - spreads only
            try:
                await self._archive.open(self._map)
            except ArchiveAwayError as error:
                self._outage.failed(error, "open")
        self._outage.answered("open")
        await self._opened_late()

    async def on_stop(self) -> None:
        """Close both, after the transport has let every partition go."""
        if self._opening is not None:
            self._opening.cancel()
        try:
            await self._archive.close()
        finally:
            await self._log_client.stop()


def build(settings: Settings) -> MapApp:
    """Return the Faust App of a worker, ready to be run.

    Raises:
        MapError: the map file cannot be used.
        SettingError: certificates or drivers that the settings ask for are not there.
    """
    protect_log(secrets_of(settings))
    hold_back_logins()
    raise_files_limit()
    themap = load_map(settings.map_file)
    reloads = Reloads()
    options = kafka_options(settings, reloads)
    _make_folder(settings)
    app = _app(settings, themap, reloads)
    log = _log(settings, themap, options)
    archive = archive_of(settings).make(settings, reloads)
    transport = Transport(_transport_options(settings, themap, options), app.flow_control.clear)
    app.accepting_failed = transport.fail
    owners = PartitionManager(
        themap,
        log,
        archive,
        settings.state_folder / themap.name,
        failed=transport.fail,
        fenced=transport.restart,
        misplaced=transport.realign,
        early_emit_s=settings.early_emit_ms / 1_000,
    )
    layer_topics = {topic for topic, plan in owners.plans.items() if plan.finer is not None}
    folders = [settings.state_folder, *archive_of(settings).folders(settings)]
    pressure = Pressure(
        settings.pending_bytes_max, settings.disk_free_bytes_min, folders, owners.pending_bytes
    )

    def lane(name: str, topics: Iterable[str], admits: Callable[[], bool]) -> Lane:
        pace = Pace(settings.gather_ms_max / 1_000, settings.chunk_bytes_max)
        put = app.chunks[name].put
        return Lane(name, topics, put, transport.lane_idle, admits=admits, pace=pace)

    ingest = lane("ingest", owners.plans.keys() - layer_topics, pressure.admits_sources)
    rollup = lane("rollup", layer_topics, pressure.admits_layers)
    transport.serve(owners, [ingest, rollup])
    schemas = schemas_of(settings, themap, reloads)
    reader = Ingest(owners, schemas)
    add_agent(app, ingest, reader.handle, transport.fail)
    add_agent(app, rollup, Rollup(owners).handle, transport.fail)
    foundation = StorageService(
        log, archive, themap, functools.partial(_check, settings, owners, options), transport.fail,
        opened_late=owners.claim_anew, outage=owners.emitted.archive,
    )  # fmt: skip
    watch = watch_of(settings, owners, transport, pressure, archive, schemas=schemas)
    reasons = functools.partial(
        readiness.reasons, transport, owners, archive,
        pressure=pressure, watch=watch, schemas=schemas,
        behind_records_max=settings.chunk_records_max,
    )  # fmt: skip
    view = WorkerStatus(
        themap, archive, owners, transport, pressure,
        readiness=reasons, secret_files=settings.secret_files, types=reader.types,
    )  # fmt: skip
    saying = functools.partial(announce, view, advertised_url(settings))
    background = Background(transport.fail, reloads.keep_looking, saying)
    app.own_services += [foundation, transport, watch, background]
    _answer(
        app, settings, view, transport,
        pressure=pressure, watch=watch, lanes=[ingest, rollup], reloads=reloads,
    )  # fmt: skip
    app.conf.seal()
    return app


def _app(settings: Settings, themap: Map, reloads: Reloads) -> MapApp:
    """Return the Faust App, without agents and services."""
    app = create_app(
        settings.group_of(themap.name),
        data_folder=settings.state_folder / "faust",
        web_host=settings.web_host,
        web_port=settings.web_port,
        web_tls=ssl_context(settings, reloads),
        web_followers_max=settings.query_live_max,
    )
    app.conf.Worker = WorkerProcess
    app.reload_files = reloads.look
    app.stall_seconds_max = settings.session_timeout_ms / 1_000
    app.secret_files = settings.secret_files
    return app


def _answer(
    app: MapApp,
    settings: Settings,
    view: WorkerStatus,
    transport: Transport,
    *,
    pressure: Pressure,
    watch: Watch,
    lanes: list[Lane],
    reloads: Reloads,
) -> None:
    """Add the query endpoint, with the other workers that it asks and the metrics."""
    threads = Threads(settings.query_concurrency_max, "query")
    access = Access(settings, reloads)
    peers = Peers(
        view.themap, view.local, lambda: transport.group.urls,
        own_url=advertised_url(settings), key=access.peer_key, threads=threads,
        only_https=bool(settings.web_cert_file), tls=peers_tls(settings, reloads),
    )  # fmt: skip
    cache = ArchiveCache(view.archive, settings.query_cache_bytes_max, threads)
    metrics = Metrics(
        view, transport, pressure, watch, lanes=lanes, peers=peers, cache=cache,
        reloads=reloads, is_insecure=settings.insecure, connections=app.connections,
    )  # fmt: skip
    install(
        app, view, settings, live=peers, cache=cache, metrics=metrics.text, access=access,
        workers=peers.workers,
    )  # fmt: skip

    async def close_peers(_: web.Application) -> None:
        await peers.close()

    app.web.web_app.on_cleanup.append(close_peers)


async def _check(settings: Settings, owners: PartitionManager, options: dict[str, Any]) -> None:
    """Check the topics, and note which cluster has them, before a partition is claimed."""
    group = settings.group_of(owners.themap.name)
    cluster = await patiently(
        lambda: check_topics(settings.brokers, owners.themap, options, group=group)
    )
    owners.claimant = Claimant(group, settings.node_name, cluster)
    log.info(
        "map %s, revision %d: node %s of group %s; state in %s, archive in %s",
        owners.themap.name, owners.themap.revision, settings.node_name, group,
        settings.state_folder.absolute(), archive_of(settings).place(settings),
    )  # fmt: skip


def _make_folder(settings: Settings) -> None:
    """Make the state folder: Faust makes its own in it, but not the ones above."""
    try:
        settings.state_folder.mkdir(mode=0o777 & ~PRIVATE, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(
            f"cannot make state folder {settings.state_folder}: {error.strerror}; want a folder "
            "that this user may write; set state_folder"
        ) from error


def _log(settings: Settings, themap: Map, options: dict[str, Any]) -> KafkaLog:
    """Return the log, to which journals and layer topics are repeatable."""
    plans = plans_of(themap)
    repeatable = {plan.journal for plan in plans.values()}
    repeatable |= {topic for topic, plan in plans.items() if plan.finer is not None}
    return KafkaLog(settings.brokers, RECORD_BYTES_MAX, options, repeatable=repeatable)


def _transport_options(
    settings: Settings, themap: Map, options: dict[str, Any]
) -> TransportOptions:
    return TransportOptions(
        brokers=settings.brokers,
        group=settings.group_of(themap.name),
        node=settings.node_name,
        home=f"{socket.gethostname()}:{settings.state_folder.absolute()}:{themap.name}",
        map_name=themap.name,
        peer_key=peer_key(settings),
        web_url=advertised_url(settings),
        partitions=themap.inputs(),
        session_timeout_ms=settings.session_timeout_ms,
        fetch_bytes_max=settings.fetch_bytes_max,
        fetch_max_wait_ms=settings.fetch_max_wait_ms,
        chunk_bytes_max=settings.chunk_bytes_max,
        chunk_records_max=settings.chunk_records_max,
        alone=why_alone(settings),
        client_options=options,
    )
