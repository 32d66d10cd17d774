"""Recognition: an owner makes sure that archive and journal belong together (journal.md rule 19).

A journal names its archive, so that claims with another one do not stand. An archive remembers the
journal of each input partition, because it cannot distinguish rows of two histories.
"""

from __future__ import annotations

import logging

from agents.partition.claims import START_OVER
from agents.partition.partition_io import PartitionIO
from tables.archive.identity import History
from tables.model.errors import ArchiveAwayError, ArchiveError, JournalRefusedError
from tables.state.input_plan import InputPlan
from tables.state.journal import Claim
from tables.state.partition_meta import Meta

log = logging.getLogger(__name__)


class Recognition:
    """Checks the archive of one partition's owner.

    Attributes:
        named: whether the claim that stands names the archive, which answered by then.
    """

    def __init__(self, plan: InputPlan, partition: int, io: PartitionIO) -> None:
        self._plan = plan
        self._partition = partition
        self._io = io
        self._meta = Meta()
        self._done = False
        self.named = False

    async def check_empty(self) -> None:
        """Refuse to begin a journal if the archive has rows of another one, before any claim.

        Raises:
            JournalRefusedError: the archive has such rows; the message says how to start over.
        """
        archive = self._io.archive
        if not archive.id:
            return
        _, end = await self._io.journal_bounds()
        if end > 0:
            return
        try:
            known = await archive.history(self._plan.topic, self._partition)
        except ArchiveError as error:
            log.info("a journal begins without asking the archive, which is asked later: %s", error)
            return
        if known is None:
            return
        # Another worker may have begun the journal, and be remembered, since it was checked.
        _, end = await self._io.journal_bounds()
        if end == 0:
            raise self._other_journal("its journal is empty", known)

    async def claimed(self, claim: Claim, meta: Meta) -> None:
        """Remember a claim that stands; :meth:`check` the archive now, if it answers."""
        self._meta = meta
        self.named = bool(claim.archive)
        self._done = False
        try:
            await self.check()
        except ArchiveError as error:
            log.info("folds before its archive is known, which is asked again: %s", error)

    async def check(self) -> None:
        """Make sure that the archive has rows of this journal alone, before one is written.

        Raises:
            ArchiveError: the archive does not answer, or did not when the partition was claimed.
            JournalRefusedError: it has rows of another journal.
        """
        if self._done:
            return
        topic, partition = self._plan.topic, self._partition
        if not self.named:
            raise ArchiveAwayError(
                f"cannot write rows of {topic}[{partition}]: the archive was away when it was "
                "claimed; it is claimed again once the archive is there"
            )
        mine = History(self._meta.history, self._meta.cluster)
        known = await self._io.archive.history(topic, partition)
        if known is None:
            known = await self._io.archive.remember(topic, partition, mine)
        if known.id != mine.id:
            raise self._other_journal(f"its journal is {mine.id}", known)
        self._done = True

    def _other_journal(self, mine: str, known: History) -> JournalRefusedError:
        here = self._io.claimant.cluster or "unknown"
        return JournalRefusedError(
            f"cannot continue {self._plan.topic}[{self._partition}]: the archive "
            f"({self._io.archive.place}) has rows of another journal; got {known.id} of Kafka "
            f"cluster {known.cluster or 'unknown'}, while {mine}, on cluster {here}; Kafka or its "
            "topics were made anew, or these are other brokers; take those that the archive "
            f"belongs to, or {START_OVER}"
        )
