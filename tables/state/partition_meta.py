"""All of a partition's state but its cells, and the claims that may continue it."""

from __future__ import annotations

import msgspec

from tables.model.shape import reshaped
from tables.model.window import NEVER_MS
from tables.state.journal import Announcement, Claim, EntryFingerprint, RecordFingerprint


class Meta(msgspec.Struct):
    """All of a partition's state but its cells.

    ``next_offset`` is the source offset up to which everything is folded, the only position there
    is. ``base`` is the offset it began at. ``since`` is, by sender, the floor it announced first,
    if it does not know from when on its cells are whole. ``began_ms`` is, by base layer that the
    map got later, from when on it knows all events, and ``columns_ms`` the same of accumulators
    that a layer got later. ``sinks_ms`` is, by coarser layer, from when on it gets all cells from
    here; ``whole`` is, by sender and column, from when on a sender's cells are whole. ``shapes``
    are those of all layers that the journal has known, ``named`` the layers of the map of the claim
    that stands. ``journal_offset`` is the next entry to read; ``entry`` the fingerprint of the one
    before it; ``tail`` the fingerprint of source record ``next_offset - 1``. ``snapshot`` is the
    journal offset of the latest snapshot, -1 before the first, and ``snapshot_bytes`` its size;
    ``covered`` the offsets that the last two cover; ``tail_bytes`` the size of the deltas since.
    ``layers`` and ``ids`` are those of the claim that stands, None if it has none; ``ids_gone`` is
    how many of the oldest ids have gone since. ``archive`` is the id of the archive that has the
    rows, and ``history`` that of the journal; both are empty until a claim names one. ``cluster``,
    ``group`` and ``node`` are those of the last claim that stands. ``first_ms`` is, by layer, the
    start of the first window that ever had cells here, None in a state that began before that was
    kept.
    """

    # Stores and snapshots have its first name.
    next_offset: int = msgspec.field(default=0, name="to")
    base: int = 0
    stream_time_ms: int = NEVER_MS
    floors: dict[str, int] = {}
    announced: dict[int, Announcement] = {}
    since: dict[int, int] = {}
    began_ms: dict[str, int] = {}
    columns_ms: dict[str, dict[str, int]] = {}
    sinks_ms: dict[str, int] = {}
    whole: dict[int, dict[str, int]] = {}
    shapes: dict[str, dict[str, str]] = {}
    named: list[str] | None = None
    ledger: dict[str, int] = {}
    revision: int = 0
    digest: str = ""
    partitions: int = 0
    epoch: int = -1
    journal_offset: int = 0
    entry: EntryFingerprint | None = None
    tail: RecordFingerprint | None = None
    snapshot: int = -1
    snapshot_bytes: int = 0
    covered: list[int] = []
    tail_bytes: int = 0
    layers: dict[str, list[str]] | None = None
    ids: int | None = None
    ids_gone: int = 0
    archive: str = ""
    history: str = ""
    cluster: str = ""
    group: str = ""
    node: str = ""
    first_ms: dict[str, int] | None = None


def may_stand(meta: Meta, claim: Claim) -> bool:
    """Return whether a claim stands in a journal that has one (docs/formats/journal.md rule 3)."""
    if claim.partitions != meta.partitions or claim.revision < meta.revision:
        return False
    if reshaped(meta.shapes, claim.shapes or {}):
        return False
    if claim.archive and meta.archive and claim.archive != meta.archive:
        return False
    return claim.revision > meta.revision or claim.digest == meta.digest
