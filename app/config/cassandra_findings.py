"""The findings that follow from an inspection of Cassandra."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from app.host.findings import Finding
from tables.called import called

if TYPE_CHECKING:
    from tables.archive.cassandra.cluster import CassandraSettings
    from tables.archive.cassandra.inspection import Inspection

COPIES = 3
"""The copies of a row with which the loss of one node loses nothing, and stops nothing."""

MAJOR_MIN = 4
AHEAD_MS_MAX = 2_000.0
"""The difference of two clocks that is taken for an error of one of them."""


def findings(settings: CassandraSettings, found: Inspection, *, has_map: bool) -> Iterator[Finding]:
    """Yield the findings of nodes and keyspace, and of tables if there is a map."""
    nodes = f"{found.nodes} node{'' if found.nodes == 1 else 's'} in {settings.local_dc}"
    if int(found.version.partition(".")[0]) < MAJOR_MIN:
        text = f"{nodes}; got version {found.version}; want {MAJOR_MIN}.0 or newer; upgrade it"
        yield Finding("fail", "cassandra", text)
    else:
        yield Finding("ok", "cassandra", f"{nodes}, version {found.version}")
    yield _clock(found.ahead_ms)
    if found.commitlog_sync.lower() == "periodic":
        text = (
            "a node acknowledges rows before it syncs them, and loses them when it is killed; got"
            " periodic; want batch; set commitlog_sync in cassandra.yaml (docs/DEPLOYING.md)"
        )
        yield Finding("warn", "commitlog_sync", text)
    yield _copies(settings, found)
    if not has_map:
        return
    for text in found.refused:
        yield Finding("fail", "tables", text)
    if found.lacking:
        text = f"got no {', no '.join(found.lacking)}; run `{called('map apply')}`"
        yield Finding("fail", "tables", text)
    elif not found.refused:
        yield Finding("ok", "tables", f"keyspace {settings.keyspace} has those of the map")


def _clock(ahead_ms: float) -> Finding:
    where = "ahead of" if ahead_ms > 0 else "behind"
    text = f"a node is {abs(ahead_ms) / 1_000:.1f} s {where} this host"
    if abs(ahead_ms) > AHEAD_MS_MAX:
        text += f"; want at most {AHEAD_MS_MAX / 1_000:.0f} s; synchronize both clocks (chrony)"
        return Finding("warn", "clock of cassandra", text)
    return Finding("ok", "clock of cassandra", text)


def _copies(settings: CassandraSettings, found: Inspection) -> Finding:
    name, subject = settings.keyspace, "replication"
    if found.copies is None:
        apply = called("map apply")
        text = f"keyspace {name} is missing, or has a strategy of its own; run `{apply}`"
        return Finding("fail", subject, text)
    words = f"keyspace {name} has {found.copies} copies of a row in {settings.local_dc}"
    mend = (
        f"run ALTER KEYSPACE \"{name}\" WITH replication = {{'class': "
        f"'NetworkTopologyStrategy', '{settings.local_dc}': {COPIES}}}, then `nodetool repair`"
    )
    if found.copies == 0 or found.copies > found.nodes:
        text = f"{words}, which has {found.nodes} nodes; want 1 to {found.nodes}; {mend}"
        return Finding("fail", subject, text)
    if found.copies < COPIES:
        text = f"{words}: rows are lost with a disk; want {COPIES}; {mend}"
        return Finding("warn", subject, text)
    return Finding("ok", subject, words)
