"""The status of a worker for its web endpoint: live cells, ledger, layers, readiness."""

from __future__ import annotations

from typing import Any

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


class WorkerStatus:
    """``app.web.handlers.WorkerView`` over the owners and the transport of this process.

    ``readiness`` yields the reasons why it is not ready. Others should not read ``secret_files``.
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
    ) -> None:
        self.themap = themap
        self.archive = archive
        self.owners = owners
        self._transport = transport
        self._pressure = pressure
        self._readiness = readiness
        self._secret_files = secret_files

    def local(self, read: LiveRead) -> LiveJob:
        """Return a job that makes the applied cells of this worker, with their freshness."""
        return self.owners.live_job(read, self._transport.fresh_ms)

    def layers(self) -> list[LayerStatus]:
        """Return each layer's counts on this worker."""
        return [self._layer(layer) for layer in self.themap.layers]

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
        return [*self._transport.membership.warnings(), *exposed]

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
        senders = [(owner.sinks, layer) for owner in owners]
        if layer.merged:
            combiner = self._combiner(layer)
            senders += [
                (o.sinks, combiner) for o in self.owners.each() if combiner in o.plan.layers
            ]
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
        )


def _by_reason(counts: ledger.Ledger, kind: str) -> dict[str, int]:
    prefix = f"{kind}."
    found = {n.removeprefix(prefix): c for n, c in counts.items() if n.startswith(prefix)}
    return dict(sorted(found.items()))


def _known(times: list[int]) -> int | None:
    """Return the least of some times, None if there are none, or before the first event."""
    least = min(times, default=NEVER_MS)
    return None if least == NEVER_MS else least
