"""Findings that follow from inspections of Cassandra."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from app.config.cassandra_findings import findings

inspection = pytest.importorskip("tables.archive.cassandra.inspection")
cluster = pytest.importorskip("tables.archive.cassandra.cluster")

GOOD = inspection.Inspection("5.0.4", 3.0, 3, 3, "batch", [], [])
SETTINGS = cluster.CassandraSettings(keyspace="space")


def test_a_good_cluster_has_no_fault() -> None:
    """Four findings, or three without a map."""
    assert [one.level for one in findings(SETTINGS, GOOD, has_map=True)] == ["ok"] * 4
    assert len(list(findings(SETTINGS, GOOD, has_map=False))) == 3


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"version": "3.11.19"}, "fail", "got version 3.11.19; want 4.0 or newer; upgrade it"),
        ({"ahead_ms": 2_001.0}, "warn", "2.0 s ahead of this host; want at most 2 s; synchron"),
        ({"ahead_ms": -9_000.0}, "warn", "a node is 9.0 s behind this host"),
        ({"commitlog_sync": "periodic"}, "warn", "got periodic; want batch; set commitlog_sync"),
        ({"copies": None}, "fail", "run `python -m app map apply`"),
        ({"copies": 0}, "fail", "want 1 to 3; run ALTER KEYSPACE"),
        ({"copies": 4}, "fail", "has 4 copies of a row in datacenter1, which has 3 nodes"),
        ({"copies": 1}, "warn", "'datacenter1': 3}, then `nodetool repair`"),
        ({"lacking": ["table space.a", "column b of table space.c"]}, "fail",
         "got no table space.a, no column b of table space.c; run `python -m app map apply`"),
        ({"refused": ["cannot use table space.a"]}, "fail", "cannot use table space.a"),
    ],
)  # fmt: skip
def test_each_fault_is_told(changes: dict[str, Any], level: str, words: str) -> None:
    """With its level and its remedy; everything else is as before."""
    found = list(findings(SETTINGS, dataclasses.replace(GOOD, **changes), has_map=True))
    (fault,) = [one for one in found if one.level != "ok"]
    assert fault.level == level
    assert words in fault.text
