"""The report of a verification: the compared rows and counts, and the differences."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as recomputed.

    ``what`` is ``http``, ``archive``, ``ledger`` or ``letters``; ``where`` says which row or count,
    ``want`` is the recomputed value, and ``got`` the found one.
    """

    what: str
    where: str
    want: str
    got: str

    def __str__(self) -> str:
        return f"{self.what}: {self.where}: got {self.got or 'none'}; want {self.want or 'none'}"


@dataclasses.dataclass(slots=True)
class LayerReport:
    """One layer's rows: recomputed, answered over HTTP, in the archive (None: not read)."""

    layer: str
    expected: int = 0
    http: int = 0
    archived: int | None = None
    differing: int = 0


@dataclasses.dataclass(slots=True)
class Report:
    """The result of a verification.

    Attributes:
        layers: by layer, how many rows were compared.
        ledger: the recomputed counts of all source partitions together.
        partitions: by topic and partition, as ``topic[partition]``, the recomputed counts.
        offsets: how many offsets of sources were read.
        differing: how many things differ, in all.
        differences: the first of them.
        notes: rows and counts that were not compared, and why.
    """

    layers: list[LayerReport]
    ledger: dict[str, int]
    partitions: dict[str, dict[str, int]]
    offsets: int
    differing: int
    differences: list[Difference]
    notes: list[str]

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.differing == 0

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return {"equal": self.equal} | dataclasses.asdict(self)
