"""The status of a worker for its web endpoint: live cells, ledger, layers, readiness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from agents.ingest import TypesSeen
from agents.partition.owner import Owner
from agents.partition.owners import PartitionManager
from app.health.backpressure import Pressure
from app.health.readiness import Source
from app.kafka.assignor import by_topic
from app.kafka.transport import Transport
from app.trust.secret_files import readable_secrets
from tables.archive.protocol import Archive
from tables.model import ledger
from tables.model.layer import Layer, Map, combiner_of
from tables.model.ledger import EVENT_COLUMNS, LAYER_COLUMNS, RECORD_COLUMNS
from tables.model.window import NEVER_MS
from tables.query.facts import described
from tables.query.live import LiveJob, LiveRead
from treasure_map.status import LayerStatus

TYPES_SHOWN = 10
"""Event types that a hint names."""


class WorkerStatus:
    """``app.web.handlers.WorkerView`` over the owners and the transport of this process.

    ``readiness`` yields the reasons why it is not ready. Others should not read ``secret_files``.
    ``types`` returns the event types that each source has had.
    """

    def __init__(
        self,
        themap: Map,
        archive: Archive,
        owners: PartitionManager,
        transport: Transport,
        pressure: Pressure,
        *,
        readiness: Source,
        secret_files: tuple[str, ...] = (),
        types: Callable[[], Mapping[str, TypesSeen]] = dict,
    ) -> None:
        self.themap = themap
        self.archive = archive
        self.owners = owners
        self._transport = transport
        self._pressure = pressure
        self._readiness = readiness
        self._secret_files = secret_files
        self._types = types

    def local(self, read: LiveRead) -> LiveJob:
        """Return a job that makes the applied cells of this worker, with their freshness."""
        return self.owners.live_job(read, self._transport.fresh_ms)

    def layers(self) -> list[LayerStatus]:
        """Return each layer's counts on this worker."""
        return [self._layer(layer) for layer in self.themap.layers]

    def unselected(self) -> dict[str, dict[str, int]]:
        """Return, by source, the event types that no layer selects, with their events."""
        return {name: dict(seen.unselected) for name, seen in self._types().items()}

    def lag(self) -> dict[str, dict[str, int | None]]:
        """Return the records not read yet, by topic and partition; None if that is not known."""
        found: dict[str, dict[str, int | None]] = {}
        for (topic, partition), lag in sorted(self._transport.lag_records().items()):
            found.setdefault(topic, {})[str(partition)] = lag
        return found

    def ledger(self) -> dict[str, Any]:
        """Return the account of all offsets and events of this worker's partitions."""
        records: dict[str, dict[str, dict[str, int | None]]] = {}
        problems: list[str] = []
        lags = self._transport.lag_records()
        handed = self._transport.positions()
        for owner in self.owners.each():
            meta = owner.state.meta
            topic, partition = owner.plan.topic, owner.partition
            row: dict[str, int | None] = {
                "read": meta.next_offset - meta.base,
                "position": meta.next_offset,
            }
            row |= {name: meta.ledger.get(f"records.{name}", 0) for name in RECORD_COLUMNS}
            lag, position = lags.get((topic, partition)), handed.get((topic, partition))
            row["end"] = None if lag is None or position is None else position + lag
            records.setdefault(topic, {})[str(partition)] = row
            names = [layer.name for layer in owner.plan.layers]
            found = ledger.imbalances(meta.ledger, meta.next_offset - meta.base, names)
            problems += [f"{topic}[{partition}]: {problem}" for problem in found]
        counts = ledger.total(owner.state.meta.ledger for owner in self.owners.each())
        events = {name: counts.get(f"events.{name}", 0) for name in ("decoded", *EVENT_COLUMNS)}
        columns = ("selected", *LAYER_COLUMNS)
        layers = {
            layer: {name: counts.get(f"layer.{layer}.{name}", 0) for name in columns}
            for layer in self._counted()
        }
        return {
            "records": records,
            "events": events,
            "reasons": {kind: _by_reason(counts, kind) for kind in ("unreadable", "malformed")},
            "nulled": _by_reason(counts, "nulled"),
            "layers": layers,
            "balanced": not problems,
            "problems": problems,
        }

    def unready(self) -> list[str]:
        """Return why this worker should not be asked now, in sentences; empty if it is ready."""
        return list(self._readiness())

    def warnings(self) -> list[str]:
        """Return a sentence for each thing to mend despite which it is ready."""
        exposed = readable_secrets(self._secret_files)
        late = self.owners.late.warnings()
        return [*self._transport.membership.warnings(), *late, *exposed]

    def serving(self) -> dict[str, list[int]]:
        """Return the restored partitions, whose live cells queries read, by topic."""
        return by_topic((owner.plan.topic, owner.partition) for owner in self.owners.each())

    def restoring(self) -> dict[str, list[int]]:
        """Return the partitions that are assigned and not restored yet, by topic."""
        return by_topic(self._transport.restoring())

    def paused(self) -> dict[str, list[str]]:
        """Return the kinds of input that are paused, each with its reasons in words."""
        return {gate.name: gate.words() for gate in self._pressure.gates if gate.reasons}

    def _counted(self) -> list[str]:
        """Return the layers of the ledger: the map's, and before each merged one its combiner."""
        names = []
        for layer in self.themap.layers:
            if layer.merged:
                names.append(self._combiner(layer).name)
            names.append(layer.name)
        return names

    def _combiner(self, layer: Layer) -> Layer:
        assert layer.source is not None
        return combiner_of(self.themap.source(layer.source), layer)

    def _layer(self, layer: Layer) -> LayerStatus:
        topic = self.themap.input_topic(layer)
        owners = [owner for owner in self.owners.each() if owner.plan.topic == topic]
        # The owners that fold its events; those of a merged layer have them in its combiner.
        folded = self._combiner(layer) if layer.merged else layer
        folding = [(o, folded) for o in self.owners.each() if folded in o.plan.layers]
        senders = [(owner.sinks, layer) for owner in owners]
        if layer.merged:
            senders += [(owner.sinks, folded) for owner, folded in folding]
        counts = ledger.total(owner.state.meta.ledger for owner, _ in folding)
        selected = counts.get(f"layer.{folded.name}.selected", 0)
        closed = [owner.state.closed_ms(layer) for owner in owners]
        floors = [owner.state.floor_ms(layer) for owner in owners]
        return LayerStatus(
            name=layer.name,
            # Rows of unmerged blocks count singly, so this is an upper bound of the cells.
            open_cells=sum(owner.state.tables[layer.name].rows for owner in owners),
            unacknowledged_windows=sum(sinks.unacknowledged(sent) for sinks, sent in senders),
            waiting_open_windows=sum(sinks.waiting_open(sent) for sinks, sent in senders),
            archived_cells=self.owners.archived_cells(layer),
            watermark_ms=_known(closed),
            floor_ms=_known(floors),
            partitions=sorted(owner.partition for owner in owners),
            whole_from={
                str(owner.partition): described(layer, owner.state.whole(layer)) for owner in owners
            },
            selected=selected,
            first_ms=_first_ms(owners, layer),
            last_ms=_last_ms(owners, layer),
            hint=self._hint(layer, counts, selected),
        )

    def _hint(self, layer: Layer, counts: Mapping[str, int], selected: int) -> str | UnsetType:
        """Return that a base layer has selected nothing of the events that there were."""
        events = sum(counts.get(f"events.{name}", 0) for name in ("classified", "unclassified"))
        if layer.source is None or selected or not events:
            return UNSET
        seen = self._types().get(layer.source)
        names = sorted(seen.selected | seen.unselected.keys()) if seen is not None else []
        shown = ", ".join(names[:TYPES_SHOWN]) or "none since the worker started"
        more = f" and {len(names) - TYPES_SHOWN} more" if len(names) > TYPES_SHOWN else ""
        return (
            f"{layer.name} has selected nothing of {events:,} events: it selects"
            f" {', '.join(layer.events)}; types seen: {shown}{more}"
        )


def _by_reason(counts: ledger.Ledger, kind: str) -> dict[str, int]:
    prefix = f"{kind}."
    found = {n.removeprefix(prefix): c for n, c in counts.items() if n.startswith(prefix)}
    return dict(sorted(found.items()))


def _first_ms(owners: Sequence[Owner], layer: Layer) -> int | None:
    """Return the first window of a layer in these partitions, None if that is not known."""
    times = [(owner.state.meta.first_ms or {}).get(layer.name) for owner in owners]
    return min((time_ms for time_ms in times if time_ms is not None), default=None)


def _last_ms(owners: Sequence[Owner], layer: Layer) -> int | None:
    """Return the last window of a layer in these partitions; of evicted ones, the last possible."""
    found = []
    for owner in owners:
        windows, floor_ms = owner.state.tables[layer.name].versions, owner.state.floor_ms(layer)
        if windows:
            found.append(max(windows))
        elif (owner.state.meta.first_ms or {}).get(layer.name) is not None:
            found.append(layer.window.start(floor_ms - 1))
    return max(found, default=None)


def _known(times: list[int]) -> int | None:
    """Return the least of some times, None if there are none, or before the first event."""
    least = min(times, default=NEVER_MS)
    return None if least == NEVER_MS else least
