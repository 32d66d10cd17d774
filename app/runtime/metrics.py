"""Metrics of one worker in Prometheus' text form, read from its parts when they are asked for.

Nothing is counted for the metrics alone. Labels come from the map: topics, partitions, layers,
columns of the ledger; never a key. The counts in an owner's state move with its partition to the
next worker, and the series continues there.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

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

Rows = Mapping[Any, float]
"""Numbers by the value of a label, or by the values of several."""


class Metrics(Collector):
    """Collects from the parts of a worker."""

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
        records, events = _columns(owners, "records"), _columns(owners, "events")
        yield _counter("records", "Records read, by their content.", records, *PARTITION, "column")
        yield _counter("events", "Events decoded, by their outcome.", events, *PARTITION, "column")
        refused = {
            (*_labels(owner), *name.split(".", 1)): count
            for owner in owners
            for name, count in owner.state.meta.ledger.items()
            if name.startswith(("unreadable.", "malformed."))
        }
        text = "Unreadable records and malformed events, by reason."
        yield _counter("refused", text, refused, *PARTITION, "kind", "reason")
        nulled = {
            (*name.split(".")[1:], str(owner.partition)): count
            for owner in owners
            for name, count in owner.state.meta.ledger.items()
            if name.startswith("nulled.")
        }
        text = "Wrong values that became null, by field."
        yield _counter("nulled_values", text, nulled, "source", "field", "partition")
        selected = {
            (layer.name, str(owner.partition), column): owner.state.meta.ledger.get(
                f"layer.{layer.name}.{column}", 0
            )
            for owner in owners
            for layer in owner.plan.layers
            for column in LAYER_COLUMNS
        }
        text = "Events or contributions that a layer selected, by outcome."
        yield _counter("layer_events", text, selected, "layer", "partition", "column")
        late = {
            layer.declared_name: episodes.get(layer.declared_name, 0)
            for plan in self._view.owners.plans.values()
            if plan.finer is None
            for layer in plan.layers
        }
        text = "How often most events of a layer began to come too late."
        yield _counter("late_episodes", text, late, "layer")
        positions = {_labels(owner): owner.position for owner in owners}
        yield _gauge("position", "Next offset to fold.", positions, *PARTITION)

    def _reading(self) -> Iterator[Metric]:
        counts, owners, lanes = self._transport.statistics(), self._view.owners, self._lanes
        lags = self._transport.lag_records().items()
        known = {
            (topic, str(partition)): lag for (topic, partition), lag in lags if lag is not None
        }
        yield _gauge("lag_records", "Offsets not handed over.", known, *PARTITION)
        states = {"ready": counts.ready, "restoring": counts.restoring}
        yield _gauge("partitions", "Partitions of this worker.", states, "state")
        for name, text, count in (
            ("chunks", "Chunks handed to agents.", counts.chunks),
            ("records_taken", "Records handed to agents.", counts.records),
            ("rebalances", "Times that partitions were revoked.", counts.rebalances),
            ("restores", "Partitions restored.", counts.restores),
            ("restore_retries", "Restores that began again.", counts.restore_retries),
            ("fenced", "Partitions lost to another owner or an unknown outcome.", counts.restarts),
            ("seeks_back", "Times that reading was not at the owner's offset.", counts.seeks_back),
            ("slow_releases", "Releases that took too long.", counts.slow_releases),
            ("coordinator_errors", "Errors of the group's coordinator.", counts.retried_errors),
            ("commit_failures", "Hints of positions not committed.", counts.commit_failures),
        ):
            yield _counter(name, text, count)
        dropped = {reason: owners.dropped[reason] for reason in DROPS}
        text = "Runs of records that no owner accepted; they are read again."
        yield _counter("runs_dropped", text, dropped, "reason")
        text = "Local stores that were damaged, and made anew from the journal."
        yield _counter("damaged_stores", text, owners.damaged_stores)
        for family, name, text, values in (
            (_counter, "agent_seconds", "Time that agents spent on chunks.",
             {lane.name: lane.handled_seconds for lane in lanes}),
            (_gauge, "gather_seconds", "How long records are gathered for a chunk now.",
             {lane.name: lane.pace.gather_seconds for lane in lanes}),
            (_gauge, "chunk_max_bytes", "How large a chunk may be now.",
             {lane.name: lane.pace.chunk_bytes for lane in lanes}),
            (_gauge, "busy_share", "CPU seconds per second, as the pace sees it.",
             {lane.name: lane.pace.busy_share for lane in lanes}),
        ):  # fmt: skip
            yield family(name, text, values, "agent")

    def _layers(self) -> Iterator[Metric]:
        layers, emitted = self._view.layers(), self._view.owners.emitted
        watermarks_ms = {one.name: one.watermark_ms for one in layers}
        for family, name, text, values in (
            (_gauge, "open_rows", "Rows of live tables.",
             {one.name: one.open_cells for one in layers}),
            (_gauge, "unacknowledged_windows", "Closed windows that some sink lacks.",
             {one.name: one.unacknowledged_windows for one in layers}),
            (_counter, "archived_rows", "Rows that the archive acknowledged.",
             {one.name: one.archived_cells for one in layers}),
            (_gauge, "watermark_seconds", "Least watermark of a layer's partitions.",
             {name: ms / 1_000 for name, ms in watermarks_ms.items() if ms is not None}),
            (_counter, "published_rows", "Rows that feeds acknowledged.",
             {one.name: emitted.published[one.name] for one in layers}),
        ):  # fmt: skip
            yield family(name, text, values, "layer")
        failures = {sink: emitted.failures[sink] for sink in SINKS}
        text = "Emissions that failed, and are repeated."
        yield _counter("emission_failures", text, failures, "sink")

    def _pressing(self) -> Iterator[Metric]:
        pressure = self._pressure
        pending_max = pressure.sources.pending_bytes_max
        yield _gauge(
            "pending_bytes", "Memory of cells that some sink lacks.", pressure.pending_bytes
        )
        yield _gauge("pending_max_bytes", "Bytes that pause sources.", pending_max)
        yield _gauge(
            "disk_free_bytes", "Free on the fullest disk in use.", pressure.disk_free_bytes
        )
        paused = {
            (gate.name, reason): reason in gate.reasons
            for gate in pressure.gates
            for reason in REASONS
        }
        text = "1 while an input is paused for this reason."
        yield _gauge("paused", text, paused, "input", "reason")
        pauses = {gate.name: gate.pauses for gate in pressure.gates}
        yield _counter("pauses", "Times that an input was paused.", pauses, "input")

    def _needing(self) -> Iterator[Metric]:
        watch, emitted = self._watch, self._view.owners.emitted
        text = "Partitions that stand while their log grows."
        yield _gauge("stuck_partitions", text, len(watch.progress.stuck()))
        text = "Times that a stuck partition was claimed again."
        yield _counter("stuck", text, watch.progress.stuck_total)
        outages = {"kafka": emitted.kafka, "archive": emitted.archive}
        for family, name, text, value in (
            (_gauge, "dependency_away", "1 while it does not answer.", "is_away"),
            (_counter, "dependency_outages", "Times that it went away.", "outages"),
            (_counter, "dependency_failures", "Attempts that it did not answer.", "failures"),
        ):
            found = {key: getattr(outage, value) for key, outage in outages.items()}
            yield family(name, text, found, "dependency")
        text = "Lines of the log that were counted only, because they said the same."
        yield _counter("log_lines_held", text, watch.floods.held_total)

    def _answering(self) -> Iterator[Metric]:
        peers, cache = self._peers, self._cache
        yield _counter("worker_asks", "Requests to other workers.", peers.asked_total)
        text = "Those that were second tries."
        yield _counter("worker_second_asks", text, peers.hedged_total)
        yield _counter("worker_asks_failed", "Those that were not answered.", peers.failed_total)
        outcomes = {"hit": cache.hits_total, "miss": cache.misses_total}
        text = "Final ranges asked of the archive, by whether they were remembered."
        yield _counter("query_cache", text, outcomes, "outcome")
        text = "Reads of the archive that met damaged rows."
        yield _counter("archive_damaged_reads", text, cache.damaged_total)
        yield _gauge("query_cache_bytes", "Memory of remembered ranges.", cache.bytes)
        yield _gauge("query_cache_entries", "Ranges that are remembered.", cache.entries)

    def _guarding(self) -> Iterator[Metric]:
        connections, strangers = self._connections, self._transport.membership.strangers
        build = {(version(), platform.python_version()): 1}
        text = "1 for the version of the worker and that of Python."
        yield _gauge("build_info", text, build, "version", "python")
        text = "1 if the settings allow an unguarded endpoint."
        yield _gauge("insecure", text, self._is_insecure)
        text = "Members of the group that are not workers of this map."
        yield _gauge("group_strangers", text, strangers.total)
        yield _gauge("web_connections", "Connections to the endpoint.", connections.open)
        refused = {reason: connections.refused[reason] for reason in REFUSED}
        text = "Connections that were refused or ended, by the reason."
        yield _counter("web_refused", text, refused, "reason")
        failing = {one.name: bool(one.error) for one in self._reloads.all}
        text = "1 while changed files cannot be used, and the last good ones are."
        yield _gauge("reload_failing", text, failing, "what")
        loads = {one.name: one.loads_total for one in self._reloads.all}
        yield _counter("reloads", "Times that changed files were put to use.", loads, "what")


def _labels(owner: Owner) -> tuple[str, str]:
    return owner.plan.topic, str(owner.partition)


def _columns(owners: Iterable[Owner], unit: str) -> Rows:
    columns = RECORD_COLUMNS if unit == "records" else EVENT_COLUMNS
    return {
        (*_labels(owner), column): owner.state.meta.ledger.get(f"{unit}.{column}", 0)
        for owner in owners
        for column in columns
    }


def _family(
    kind: type[CounterMetricFamily | GaugeMetricFamily],
) -> Callable[..., Metric]:
    def family(name: str, text: str, found: float | Rows, *labels: str) -> Metric:
        """Return a family of one number, or of numbers by the values of its labels."""
        metric = kind(PREFIX + name, text, labels=labels)
        rows = found if isinstance(found, Mapping) else {(): found}
        for values, number in rows.items():
            metric.add_metric((values,) if isinstance(values, str) else values, number)
        return metric

    return family


_counter = _family(CounterMetricFamily)
_gauge = _family(GaugeMetricFamily)
