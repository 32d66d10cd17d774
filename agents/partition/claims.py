"""Why a claim does not stand, or a state must not continue (docs/formats/journal.md rule 3)."""

from __future__ import annotations

import logging

import msgspec

from agents.partition.partition_io import PartitionIO
from tables.archive.identity import draw_id
from tables.model.errors import FencedError, JournalRefusedError
from tables.model.shape import reshaped
from tables.state.input_plan import InputPlan
from tables.state.journal import Claim, Claimant
from tables.state.partition_meta import Meta

START_OVER = (
    "start over: `reset` deletes the map's own topics and its archive; or take another map"
    " name, with an archive_folder of its own if it is embedded"
)
OTHER_PARTITIONS = (
    "set partitions in the map to the number of the topic; if its journals were begun with another "
    f"number, {START_OVER}"
)


log = logging.getLogger(__name__)


def why_refused(
    plan: InputPlan, partition: int, meta: Meta, claim: Claim
) -> JournalRefusedError | FencedError:
    """Return why ``claim`` does not stand in a journal whose state is ``meta``."""
    where = f"{plan.topic}[{partition}]"
    if claim.archive and meta.archive and claim.archive != meta.archive:
        return JournalRefusedError(
            f"cannot claim {where}: its rows are in another archive; got archive {claim.archive}; "
            f"want {meta.archive}, as node {meta.node or 'unknown'} of group "
            f"{meta.group or 'unknown'} had it last; give this worker that archive (a folder may "
            f"be moved, a relative one is that of the working folder), or {START_OVER}"
        )
    if wrong := wrong_map(plan.topic, meta, claim):
        return JournalRefusedError(f"cannot claim {where}: {'; '.join(wrong)}")
    return fenced(f"cannot claim {where}: a newer claim stands", meta, Claimant(claim.group))


def wrong_map(topic: str, meta: Meta, claim: Claim) -> list[str]:
    """Return why a claim's map may not continue a journal of ``topic`` whose state is ``meta``."""
    wrong = ""
    if claim.revision < meta.revision:
        wrong = (
            f"its journals are at map revision {meta.revision}; got {claim.revision}; to go back, "
            "use the old rules under a higher revision"
        )
    elif claim.partitions != meta.partitions:
        wrong = (
            f"the map declares {claim.partitions} partitions of {topic}; its journal was begun "
            f"with {meta.partitions}; {OTHER_PARTITIONS}"
        )
    elif changed := reshaped(meta.shapes, claim.shapes or {}):
        return changed
    elif claim.revision == meta.revision and claim.digest != meta.digest:
        wrong = (
            f"another map was used as revision {meta.revision}; raise the revision with every "
            f"change of the map, here to {meta.revision + 1}"
        )
    return [wrong] if wrong else []


def fenced(cannot: str, meta: Meta, claimant: Claimant) -> FencedError:
    """Return the error of an owner that a newer owner, the one in ``meta``, has replaced."""
    known = bool(meta.group or meta.node)
    who = f"node {meta.node or 'unknown'} of group {meta.group or 'unknown'}" if known else ""
    rival = who if known and meta.group != claimant.group else ""
    return FencedError(f"{cannot}: that of {who}" if who else cannot, rival)


async def new_claim(plan: InputPlan, io: PartitionIO) -> Claim:
    """Return the claim of a partition, as its source and archive are now."""
    base, _ = await io.source_bounds()
    claimant = io.claimant
    return msgspec.structs.replace(
        plan.claim(base),
        archive=io.archive.id,
        history=draw_id(),
        cluster=claimant.cluster,
        group=claimant.group,
        node=claimant.node,
    )


async def check_source(plan: InputPlan, partition: int, meta: Meta, io: PartitionIO) -> None:
    """Refuse a source log that is not the one whose prefix the state was made from.

    A missing record does not prove another log: compaction removes records, also the last one that
    was read and later ones. The bounds are read after the journal, because an earlier owner may
    have advanced until the claim.

    Raises:
        JournalRefusedError: it is another log, or has lost records that are still to be read.
    """
    where = f"{plan.topic}[{partition}]"
    first, end = await io.source_bounds()
    tail = None
    if meta.tail is not None and meta.next_offset > first:
        tail = await io.record_fingerprint(meta.next_offset - 1)
    if tail is not None and tail != meta.tail:
        raise JournalRefusedError(
            f"cannot continue {where}: record {meta.next_offset - 1} is not the one that was read; "
            f"the topic was made anew; {START_OVER}"
        )
    # If the last record is there, the log reaches it, even if the broker reports an earlier end:
    # the embedded one counts its last batch as one record.
    if meta.next_offset < first or (meta.next_offset > end and tail is None):
        raise JournalRefusedError(
            f"cannot continue {where} at offset {meta.next_offset}: its log holds "
            f"[{first}, {end}); events were deleted before they were read, or the topic was made "
            f"anew; {START_OVER}"
        )
    if tail is None and meta.tail is not None and meta.next_offset > first:
        log.warning(
            "%s resumes at offset %d: the record before it is gone, as after a compaction;"
            " offsets without a record are counted as records.gap",
            where, meta.next_offset,
        )  # fmt: skip
