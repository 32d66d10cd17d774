"""Back-pressure: while cells cannot leave, or a disk is nearly full, less is read.

Nothing is dropped and nobody leaves the group: unread records stay in Kafka. Only inputs that add
cells pause; emission and eviction continue, so the pending bytes can only fall.

    pending cells   0 ......... 80 % ......... max ......... 160 % ......... 2 max
    sources         read          `- again       `- paused
    layer topics    read                                      `- again         `- paused

Sources pause first, because they feed everything. Layer topics have twice the room: reading them
brings coarser windows to their end, and other workers' sources write them too.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

LAYERS_ROOM = 2
"""The factor by which layer topics may fill more than sources."""

AGAIN = 0.8
"""Paused inputs resume when the pending bytes have fallen to this share of the mark."""

FAR = 0.5
"""The share of the mark above which pending bytes are measured before every chunk, so that they
pass the mark by one chunk at most. Below it they are measured now and then."""

COST_SHARE = 0.01
"""The share of the time that measuring may take while the mark is far. It reads every open
window of the worker."""

PENDING, DISK = "pending_bytes", "disk_free"
REASONS = (PENDING, DISK)
MIB = 1 << 20


@dataclasses.dataclass(slots=True)
class Gate:
    """One kind of input, shut for reasons.

    Attributes:
        name: the kind, ``sources`` or ``layers``.
        reasons: why it is shut, by kind of reason, in words; empty while it is open.
        pauses: how often it was shut.
    """

    name: str
    pending_bytes_max: int
    disk_free_bytes_min: int
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    pauses: int = 0

    def measure(self, pending_bytes: int, disk_free_bytes: int, disk: Path) -> None:
        """Shut or open by the measured bytes; between the two marks nothing changes."""
        was_open = not self.reasons
        if pending_bytes > self.pending_bytes_max:
            self.reasons[PENDING] = (
                f"{_mib(pending_bytes)} of cells wait to be acknowledged; want at most "
                f"{_mib(self.pending_bytes_max)}; see that archive and brokers accept them"
            )
        elif pending_bytes <= self.pending_bytes_max * AGAIN:
            self.reasons.pop(PENDING, None)
        if disk_free_bytes < self.disk_free_bytes_min:
            self.reasons[DISK] = (
                f"the disk of {disk} has {_mib(disk_free_bytes)} free; want at least "
                f"{_mib(self.disk_free_bytes_min)}; make room on it"
            )
        elif disk_free_bytes * AGAIN >= self.disk_free_bytes_min:
            self.reasons.pop(DISK, None)
        if was_open and self.reasons:
            self.pauses += 1
            log.warning("%s pause, nothing is lost: %s", self.name, "; ".join(self.words()))
        elif not (was_open or self.reasons):
            log.warning("%s resume", self.name)

    def words(self) -> list[str]:
        """Return why it is shut, in words."""
        return [self.reasons[kind] for kind in REASONS if kind in self.reasons]


class Pressure:
    """The pressure on this worker, and the gates that it shuts.

    Sources pause past ``pending_bytes_max`` bytes of pending cells, or below
    ``disk_free_bytes_min`` on a disk of one of the folders, which must exist when the first input
    comes.

    Attributes:
        pending_bytes: as measured last.
        disk_free_bytes: the least of the folders' disks, as measured last.
    """

    def __init__(
        self,
        pending_bytes_max: int,
        disk_free_bytes_min: int,
        folders: Sequence[Path],
        pending_bytes: Callable[[], int],
        clock_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.pending_bytes = 0
        self.disk_free_bytes = 0
        self.sources = Gate("sources", pending_bytes_max, disk_free_bytes_min)
        self.layers = Gate(
            "layers", pending_bytes_max * LAYERS_ROOM, disk_free_bytes_min // LAYERS_ROOM
        )
        self._folders = folders
        self._pending_bytes = pending_bytes
        self._clock_s = clock_s
        self._due_s = clock_s()

    @property
    def gates(self) -> tuple[Gate, Gate]:
        """Both gates."""
        return self.sources, self.layers

    def admits_sources(self) -> bool:
        """Return whether a chunk of a source may be handed over."""
        self._measure()
        return not self.sources.reasons

    def admits_layers(self) -> bool:
        """Return whether a chunk of a layer topic may be handed over."""
        self._measure()
        return not self.layers.reasons

    def _measure(self) -> None:
        begun_s = self._clock_s()
        far = self.pending_bytes < self.sources.pending_bytes_max * FAR
        if far and begun_s < self._due_s:
            return
        self.pending_bytes = self._pending_bytes()
        free = {folder: shutil.disk_usage(folder).free for folder in self._folders}
        fullest = min(free, key=free.__getitem__)
        self.disk_free_bytes = free[fullest]
        for gate in self.gates:
            gate.measure(self.pending_bytes, self.disk_free_bytes, fullest)
        ended_s = self._clock_s()
        self._due_s = ended_s + (ended_s - begun_s) / COST_SHARE


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"
