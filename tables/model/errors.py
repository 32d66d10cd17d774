"""The one tree of operating errors; programmer errors are asserts.

A message reads ``cannot <verb> <object>: <cause>; <remedy>``.
"""


class TreasureMapError(Exception):
    """Anything a user or an operator can cause or mend."""


class ProblemsError(TreasureMapError):
    """Several faults at once.

    Attributes:
        problems: one line each, ``<subject>: <fault>; <remedy>``.
    """

    def __init__(self, message: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n  - ".join([message, *problems]))


class MapError(ProblemsError):
    """A map file that cannot be exact, with every problem found in it."""

    def __init__(self, source: str, problems: list[str]) -> None:
        super().__init__(f"cannot use map {source}: {len(problems)} problem(s)", problems)


class SettingError(TreasureMapError):
    """Settings that cannot be used, with every bad field named."""


class JournalRefusedError(TreasureMapError):
    """A journal or source that must not be continued: wrong map, lost prefix, newer format."""


class FencedError(TreasureMapError):
    """A newer owner of the partition stands in the journal; this one forgets its memory.

    Attributes:
        rival: the newer owner in words, if it is of another consumer group; else empty.
    """

    def __init__(self, message: str, rival: str = "") -> None:
        self.rival = rival
        super().__init__(message)


class OutcomeUnknownError(TreasureMapError):
    """An append that may or may not have arrived; the owner claims again and reads the journal."""


class RecordTooLargeError(TreasureMapError):
    """A record that its topic does not accept; a larger limit, or a smaller record, is needed."""


class JournalUnreadError(OutcomeUnknownError):
    """A claim has landed and the journal could not be read after it.

    Each further try leaves one more claim in the journal, so they become rare.
    """


class OffsetGoneError(TreasureMapError):
    """Records were asked for that the log does not have: deleted, or never written."""


class ArchiveError(TreasureMapError):
    """The archive did not store or return rows; tables and journal keep them to send them again."""


class ArchiveAwayError(ArchiveError):
    """The archive does not answer; it may do so later, with nothing changed here."""


class ArchiveRefusedError(ArchiveError):
    """The archive answers and refuses: a right, a login or a certificate is not as it must be.

    Asking again does not help until somebody has mended the fault of the message.
    """


class ArchiveDamagedError(ArchiveError):
    """Bytes of the archive are not those that were written; asking again does not help.

    Attributes:
        where: the requested rows, in words for the caller; empty if there was no request.
    """

    where = ""


class QueryError(TreasureMapError):
    """A request that cannot be answered as asked; maps to HTTP 400."""


class PartialError(TreasureMapError):
    """Some owners do not answer, and there can be, or must be, no answer without them.

    It maps to HTTP 503.
    """


class DeltaTooLargeError(TreasureMapError):
    """A chunk adds more than one journal record holds; it was not appended. Fold it in parts."""
