"""Metrics of one worker in Prometheus' text form, read from its parts when they are asked for.

Nothing is counted for the metrics alone. Labels come from the map: topics, partitions, layers,
columns of the ledger; never a key. The counts in an owner's state move with its partition to the
next worker, and the series goes on there.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agents.partition.emit_counts import SINKS
from agents.partition.owned_partition import DROPS
from agents.partition.owner import Owner
from app.health.backpressure import REASONS, Pressure
from app.kafka.lane import Lane
from app.web.server import REASONS as REFUSED
from tables.model.ledger import EVENT_COLUMNS, LAYER_COLUMNS, RECORD_COLUMNS
from treasure_map.version import version

if TYPE_CHECKING:
    from app.health.watch import Watch
    from app.host.reloads import Reloads
    from app.kafka.transport import Transport
    from app.peers.remote_owners import Peers
    from app.runtime.worker_status import WorkerStatus
    from app.web.server import Counts
    from tables.archive.cache import ArchiveCache

PREFIX = "treasure_map_"
PARTITION = ("topic", "partition")

Rows = Iterable[tuple[tuple[str, ...], float]]


class Metrics(Collector):
    """Collects from a worker's view and transport.

    Args:
        view: the worker's partitions and layers.
        transport: the service that reads for them.
        pressure: the back-pressure that pauses it.
        watch: the watch over the services that the worker needs.
        lanes: the agents' lanes.
        peers: the client of the other workers.
        cache: the cache of the archive.
        reloads: the files that are read again when they change.
        is_insecure: whether the settings allow an unguarded endpoint.
        connections: the counts of connections to the endpoint.
    """

    def __init__(
        self,
        view: WorkerStatus,
        transport: Transport,
        pressure: Pressure,
        watch: Watch,
        *,
        lanes: Iterable[Lane],
        peers: Peers,
        cache: ArchiveCache,
        reloads: Reloads,
        is_insecure: bool,
        connections: Counts,
    ) -> None:
        self._connections = connections
        self._reloads = reloads
        self._is_insecure = is_insecure
        self._peers = peers
        self._cache = cache
        self._view = view
        self._transport = transport
        self._pressure = pressure
        self._watch = watch
        self._lanes = tuple(lanes)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text form."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the families follow from the map and the partitions held."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        yield from self._ledger()
        yield from self._reading()
        yield from self._layers()
        yield from self._pressing()
        yield from self._needing()
        yield from self._answering()
        yield from self._guarding()

    def _ledger(self) -> Iterator[Metric]:
        owners = list(self._view.owners.each())
        episodes = self._view.owners.late.episodes
        yield _counter(
            "records", "Records read, by their content.", (*PARTITION, "column"),
            _columns(owners, "records", RECORD_COLUMNS),
        )  # fmt: skip
        yield _counter(
            "events", "Events decoded, by their outcome.", (*PARTITION, "column"),
            _columns(owners, "events", EVENT_COLUMNS),
        )  # fmt: skip
        yield _counter(
            "refused", "Unreadable records and malformed events, by reason.",
            (*PARTITION, "kind", "reason"),
            (
                ((*_place(owner), *name.split(".", 1)), count)
                for owner in owners
                for name, count in owner.state.meta.ledger.items()
                if name.startswith(("unreadable.", "malformed."))
            ),
        )  # fmt: skip
        yield _counter(
            "layer_events", "Events or contributions that a layer selected, by outcome.",
            ("layer", "partition", "column"),
            (
                (
                    (layer.name, str(owner.partition), column),
                    owner.state.meta.ledger.get(f"layer.{layer.name}.{column}", 0),
                )
                for owner in owners
                for layer in owner.plan.layers
                for column in LAYER_COLUMNS
            ),
        )  # fmt: skip
        yield _counter(
            "late_episodes", "How often most events of a layer began to come too late.", ("layer",),
            (
                ((layer.declared_name,), episodes.get(layer.declared_name, 0))
                for plan in self._view.owners.plans.values()
                if plan.finer is None
                for layer in plan.layers
            ),
        )  # fmt: skip
        yield _gauge(
            "position", "Next offset to fold.", PARTITION,
            ((_place(owner), owner.position) for owner in owners),
        )  # fmt: skip

    def _reading(self) -> Iterator[Metric]:
        counts = self._transport.statistics()
        lags = self._transport.lag_records()
        yield _gauge(
            "lag_records", "Offsets not handed over.", PARTITION,
            (((topic, str(p)), lag) for (topic, p), lag in lags.items() if lag is not None),
        )  # fmt: skip
        states = {"ready": counts.ready, "restoring": counts.restoring}
        yield _gauge(
            "partitions", "Partitions of this worker.", ("state",),
            (((state,), count) for state, count in states.items()),
        )  # fmt: skip
        for name, what, count in (
            ("chunks", "Chunks handed to agents.", counts.chunks),
            ("records_taken", "Records handed to agents.", counts.records),
            ("rebalances", "Times that partitions were revoked.", counts.rebalances),
            ("restores", "Partitions restored.", counts.restores),
            ("restore_retries", "Restores that began again.", counts.restore_retries),
            ("fenced", "Partitions lost to another owner or an unknown outcome.", counts.restarts),
            ("seeks_back", "Times that reading stood elsewhere than the owner.", counts.seeks_back),
            ("slow_releases", "Releases that took too long.", counts.slow_releases),
            ("coordinator_errors", "Errors of the group's coordinator.", counts.retried_errors),
            ("commit_failures", "Hints of positions not committed.", counts.commit_failures),
        ):
            yield _counter(name, what, (), [((), count)])
        dropped = self._view.owners.dropped
        yield _counter(
            "runs_dropped", "Runs of records that no owner took; they are read again.", ("reason",),
            (((reason,), dropped[reason]) for reason in DROPS),
        )  # fmt: skip
        yield _counter(
            "damaged_stores", "Local stores that were damaged, and made anew from the journal.", (),
            [((), self._view.owners.damaged_stores)],
        )  # fmt: skip
        yield _counter(
            "agent_seconds", "Time that agents spent on chunks.", ("agent",),
            (((lane.name,), lane.handled_seconds) for lane in self._lanes),
        )  # fmt: skip
        for name, what, value in (
            ("gather_seconds", "How long records are gathered for a chunk now.", "gather_seconds"),
            ("chunk_max_bytes", "How large a chunk may be now.", "chunk_bytes"),
            ("busy_share", "CPU seconds per second, as the pace sees it.", "busy_share"),
        ):
            yield _gauge(
                name, what, ("agent",),
                (((lane.name,), getattr(lane.pace, value)) for lane in self._lanes),
            )  # fmt: skip

    def _layers(self) -> Iterator[Metric]:
        layers = self._view.layers()
        yield _gauge(
            "open_rows", "Rows of live tables.", ("layer",),
            (((layer.name,), layer.open_cells) for layer in layers),
        )  # fmt: skip
        yield _gauge(
            "unacknowledged_windows", "Closed windows that some sink lacks.", ("layer",),
            (((layer.name,), layer.unacknowledged_windows) for layer in layers),
        )  # fmt: skip
        yield _counter(
            "archived_rows", "Rows that the archive acknowledged.", ("layer",),
            (((layer.name,), layer.archived_cells) for layer in layers),
        )  # fmt: skip
        yield _gauge(
            "watermark_seconds", "Least watermark of a layer's partitions.", ("layer",),
            (
                ((layer.name,), layer.watermark_ms / 1_000)
                for layer in layers
                if layer.watermark_ms is not None
            ),
        )  # fmt: skip
        emitted = self._view.owners.emitted
        yield _counter(
            "published_rows", "Rows that feeds acknowledged.", ("layer",),
            (((layer.name,), emitted.published[layer.name]) for layer in layers),
        )  # fmt: skip
        yield _counter(
            "emission_failures", "Emissions that failed, and are repeated.", ("sink",),
            (((sink,), emitted.failures[sink]) for sink in SINKS),
        )  # fmt: skip

    def _pressing(self) -> Iterator[Metric]:
        pressure = self._pressure
        for name, what, value in (
            ("pending_bytes", "Memory of cells that some sink lacks.", pressure.pending_bytes),
            (
                "pending_max_bytes", "Bytes that pause sources.",
                pressure.sources.pending_bytes_max,
            ),
            ("disk_free_bytes", "Free on the fullest disk in use.", pressure.disk_free_bytes),
        ):  # fmt: skip
            yield _gauge(name, what, (), [((), value)])
        yield _gauge(
            "paused", "1 while an input is paused for this reason.", ("input", "reason"),
            (
                ((gate.name, reason), reason in gate.reasons)
                for gate in pressure.gates
                for reason in REASONS
            ),
        )  # fmt: skip
        yield _counter(
            "pauses", "Times that an input was paused.", ("input",),
            (((gate.name,), gate.pauses) for gate in pressure.gates),
        )  # fmt: skip

    def _needing(self) -> Iterator[Metric]:
        progress, floods = self._watch.progress, self._watch.floods
        yield _gauge(
            "stuck_partitions", "Partitions that stand while their log goes on.", (),
            [((), len(progress.stuck()))],
        )  # fmt: skip
        yield _counter(
            "stuck", "Times that a stuck partition was claimed again.", (),
            [((), progress.stuck_total)],
        )  # fmt: skip
        outages = {"kafka": self._view.owners.emitted.kafka}
        outages["archive"] = self._view.owners.emitted.archive
        for name, what, family, value in (
            ("dependency_away", "1 while it does not answer.", _gauge, "is_away"),
            ("dependency_outages", "Times that it went away.", _counter, "outages"),
            ("dependency_failures", "Attempts that it did not answer.", _counter, "failures"),
        ):
            yield family(
                name, what, ("dependency",),
                (((key,), getattr(outage, value)) for key, outage in outages.items()),
            )  # fmt: skip
        yield _counter(
            "log_lines_held", "Lines of the log that were counted, because they said the same.", (),
            [((), floods.held_total)],
        )  # fmt: skip

    def _answering(self) -> Iterator[Metric]:
        peers, cache = self._peers, self._cache
        for name, what, count in (
            ("worker_asks", "Requests to other workers.", peers.asked_total),
            ("worker_second_asks", "Those that were second tries.", peers.hedged_total),
            ("worker_asks_failed", "Those that were not answered.", peers.failed_total),
        ):
            yield _counter(name, what, (), [((), count)])
        yield _counter(
            "query_cache", "Final ranges asked of the archive, by whether they were remembered.",
            ("outcome",), [(("hit",), cache.hits_total), (("miss",), cache.misses_total)],
        )  # fmt: skip
        yield _counter(
            "archive_damaged_reads", "Reads of the archive that met damaged rows.", (),
            [((), cache.damaged_total)],
        )  # fmt: skip
        yield _gauge("query_cache_bytes", "Memory of remembered ranges.", (), [((), cache.bytes)])
        yield _gauge(
            "query_cache_entries", "Ranges that are remembered.", (), [((), cache.entries)]
        )

    def _guarding(self) -> Iterator[Metric]:
        yield _gauge(
            "build_info", "1 for the version of the worker and that of Python.",
            ("version", "python"), [((version(), platform.python_version()), 1)],
        )  # fmt: skip
        yield _gauge(
            "insecure", "1 if the settings allow an unguarded endpoint.", (),
            [((), self._is_insecure)],
        )  # fmt: skip
        yield _gauge(
            "group_strangers", "Members of the group that are not workers of this map.", (),
            [((), self._transport.membership.strangers.total)],
        )  # fmt: skip
        connections = self._connections
        yield _gauge("web_connections", "Connections to the endpoint.", (),
                     [((), connections.open)])  # fmt: skip
        yield _counter(
            "web_refused", "Connections that were refused or ended, by the reason.", ("reason",),
            (((reason,), connections.refused[reason]) for reason in REFUSED),
        )  # fmt: skip
        reloads = self._reloads.all
        yield _gauge(
            "reload_failing", "1 while changed files cannot be used, and the last good ones are.",
            ("what",), (((one.name,), bool(one.error)) for one in reloads),
        )  # fmt: skip
        yield _counter(
            "reloads", "Times that changed files were put to use.", ("what",),
            (((one.name,), one.loads_total) for one in reloads),
        )  # fmt: skip


def _place(owner: Owner) -> tuple[str, str]:
    return owner.plan.topic, str(owner.partition)


def _columns(owners: Iterable[Owner], unit: str, columns: Iterable[str]) -> Rows:
    return (
        ((*_place(owner), column), owner.state.meta.ledger.get(f"{unit}.{column}", 0))
        for owner in owners
        for column in columns
    )


def _family(
    kind: type[CounterMetricFamily | GaugeMetricFamily],
) -> Callable[[str, str, tuple[str, ...], Rows], Metric]:
    def family(name: str, what: str, labels: tuple[str, ...], rows: Rows) -> Metric:
        metric = kind(PREFIX + name, what, labels=labels)
        for values, number in rows:
            metric.add_metric(values, number)
        return metric

    return family


_counter = _family(CounterMetricFamily)
_gauge = _family(GaugeMetricFamily)
