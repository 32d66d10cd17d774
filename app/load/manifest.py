"""The manifest of a load: its options, the written records, and the ledger that must follow.

The format is described in docs/formats/manifest.md.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from app.load.plan import LoadSpec
from app.load.process import PartResult
from app.load.truth import PartitionTruth
from tables.model.errors import TreasureMapError
from tables.model.layer import Map
from tables.model.ledger import total

FORMAT = 1


class ManifestError(TreasureMapError):
    """A manifest that could not be written."""


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """A load that has ended.

    ``first`` and ``ends`` are the offsets of each partition before and after; ``settled_ms`` is the
    time of the last heartbeat, None if there was none.
    """

    plan: LoadSpec
    command: Sequence[str]
    started_ms: int
    ended_ms: int
    results: Sequence[PartResult]
    first: Mapping[int, int]
    ends: Mapping[int, int]
    settled_ms: int | None

    @property
    def partitions(self) -> dict[int, PartitionTruth]:
        """The truth of every partition, in order."""
        found = {number: one for part in self.results for number, one in part.partitions.items()}
        return dict(sorted(found.items()))

    @property
    def disturbed(self) -> list[int]:
        """Partitions that hold other records than this load's, or some of them twice."""
        return [
            number
            for number, one in self.partitions.items()
            if self.first[number] + one.records != self.ends[number]
        ]


def manifest_of(themap: Map, written: Written) -> dict[str, Any]:
    """Return the manifest as JSON has it."""
    plan = written.plan
    partitions = written.partitions
    truths = list(partitions.values())
    ledger = total(one.ledger for one in truths)
    late = total(one.late for one in truths)
    return {
        "format": FORMAT,
        "command": list(written.command),
        "options": dataclasses.asdict(plan),
        "map": {"name": themap.name, "revision": themap.revision, "digest": themap.digest},
        "topic": themap.source(plan.source).topic,
        "started_ms": written.started_ms,
        "ended_ms": written.ended_ms,
        "stopped": any(result.stopped for result in written.results),
        "processes": len(written.results),
        "seconds": max(result.seconds for result in written.results),
        "cpu_seconds": sum(result.cpu_seconds for result in written.results),
        "behind_ms_max": max(result.behind_ms_max for result in written.results),
        "settled_ms": written.settled_ms,
        "late": "unknown" if any(written.first.values()) else "known",
        "disturbed": written.disturbed,
        "events": sum(result.events for result in written.results),
        "records": sum(one.records for one in truths),
        "bad": _known(total(result.bad for result in written.results)),
        "ledger": _known(ledger),
        "layers": {
            name: {
                column: ledger.get(f"layer.{name}.{column}", 0)
                for column in ("selected", "filtered", "folded", "too_late")
            }
            | {"late": count}
            for name, count in sorted(late.items())
        },
        "dead_letters": _known(total(one.dead for one in truths)),
        "partitions": {
            str(number): {
                "first": written.first[number],
                "end": written.first[number] + one.records,
                "stream_time_ms": one.stream_time_ms if "events.decoded" in one.ledger
                or "records.heartbeat" in one.ledger else None,
                "ledger": _known(one.ledger),
                "dead_letters": _known(one.dead),
            }
            for number, one in partitions.items()
        },
    }  # fmt: skip


def write_manifest(path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest, whole or not at all.

    Raises:
        ManifestError: the file cannot be written.
    """
    text = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(text)
        part.replace(path)
    except OSError as error:
        raise ManifestError(
            f"cannot write manifest {path}: {error.strerror or error}; got {len(text)} bytes to"
            " write; want a folder with room for them; give another --manifest"
        ) from error


def _known(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts above zero, sorted by name."""
    return {name: count for name, count in sorted(counts.items()) if count}
