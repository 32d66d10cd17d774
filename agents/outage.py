"""An outage: whether a dependency answers, with one line of the log at each change.

    answered . failed . . . failed | away ............................ answered
                     GRACE_S       | "does not answer"                 "answers again after 41 s"

Every caller reports how its attempt ended. Many attempts run side by side, and one failure among
answers is not an outage. An outage begins when one kind of attempt has failed for a while without
an answer. Failures during an outage are counted, not logged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator

from tables.model.errors import ArchiveError, ArchiveRefusedError, OutcomeUnknownError

log = logging.getLogger(__name__)

GRACE_S = 1.0
"""Seconds of failures, without an answer between them, that are an outage."""

FORGET_S = 60.0
"""Seconds after which the last failure of a kind of attempt no longer counts: it may have been
that of a partition that has moved to another worker."""


@dataclasses.dataclass(slots=True)
class _Failing:
    """One kind of attempt that fails: its times without success, and its latest error."""

    since_s: float
    first_s: float
    last_s: float
    error: object


class Outage:
    """Whether one dependency answers.

    Args:
        name: its name, as the beginning of a sentence.
        meanwhile: the consequence while it is away, for the log.
        clock_s: seconds of a clock that never goes back.

    Attributes:
        outages: the number of outages so far.
        failures: attempts that failed.
        error: the latest failure.
    """

    def __init__(
        self, name: str, meanwhile: str, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._meanwhile = meanwhile
        self._clock_s = clock_s
        self._failing: dict[str, _Failing] = {}
        self._answered_s: dict[str, float] = {}
        self._logged_s: float | None = None
        self._failures_before = 0
        self.outages = 0
        self.failures = 0
        self.error = ""

    def failed(self, error: object, attempt: str = "") -> None:
        """Count a failed attempt of the named kind."""
        now_s = self._clock_s()
        if not self._failing:
            self._failures_before = self.failures
        answered_s = self._answered_s.get(attempt, now_s)
        # Attempts that are made now and then may have failed for a part of the time only.
        since_s = answered_s if now_s < answered_s + FORGET_S else now_s
        failing = self._failing.setdefault(attempt, _Failing(since_s, now_s, now_s, error))
        failing.last_s, failing.error = now_s, error
        self.failures += 1
        self.error = str(error) or repr(error)
        self._log_away()

    @contextlib.contextmanager
    def attempt(self, kind: str) -> Iterator[None]:
        """Report how an attempt, the body of the ``with`` statement, ends."""
        try:
            yield
        except (ArchiveError, OutcomeUnknownError) as error:
            self.failed(error, kind)
            raise
        self.answered(kind)

    def answered(self, attempt: str = "") -> None:
        """Report an attempt of the named kind that got an answer."""
        self._log_away()
        now_s = self._answered_s[attempt] = self._clock_s()
        self._failing.pop(attempt, None)
        if self._logged_s is not None and not self._long():
            log.warning(
                "%s answers again after %.0f s; %d attempts failed",
                self.name, now_s - self._logged_s, self.failures - self._failures_before,
            )  # fmt: skip
            self._logged_s = None

    def abandoned(self, attempt: str) -> None:
        """Forget a kind of attempt that is no longer made."""
        self._failing.pop(attempt, None)
        self._answered_s.pop(attempt, None)

    @property
    def is_away(self) -> bool:
        """Whether failures have lasted ``GRACE_S``: an outage, which is then logged."""
        self._log_away()
        return bool(self._long())

    @property
    def away_s(self) -> float:
        """The seconds for which it has not answered, 0 while it is not away."""
        return max((self._clock_s() - failing.since_s for failing in self._long()), default=0.0)

    @property
    def words(self) -> tuple[str, str]:
        """The state and its cause: it does not answer, or it answers and refuses."""
        long = self._long()
        refused = [failing for failing in long if isinstance(failing.error, ArchiveRefusedError)]
        latest = max(refused or long, key=lambda failing: failing.last_s, default=None)
        error = latest.error if latest is not None else self.error
        return "refuses" if refused else "does not answer", str(error) or repr(error)

    def _log_away(self) -> None:
        if self._logged_s is None and (long := self._long()):
            self._logged_s = min(failing.since_s for failing in long)
            self.outages += 1
            how, why = self.words
            log.warning("%s %s; %s: %s", self.name, how, self._meanwhile, why)

    def _long(self) -> list[_Failing]:
        now_s = self._clock_s()
        return [
            failing
            for failing in self._failing.values()
            if now_s >= failing.first_s + GRACE_S and now_s < failing.last_s + FORGET_S
        ]
