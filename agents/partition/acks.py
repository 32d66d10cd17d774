"""The windows of a layer that a sink has acknowledged, and those that are pending there."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence

from tables.model.window import Window


class Acks:
    """Acknowledgements of one sink: by window start, up to which version it has all cells.

    The pending windows are kept up to date, never searched for. With windows of five seconds and
    hours of lateness there are thousands of others, and 100,000s while a sink is away.

    Args:
        versions: by window start, the version of its latest change. It is read again for the
            windows that :meth:`changed` gets.
    """

    def __init__(self, versions: Mapping[int, int]) -> None:
        self._versions = versions
        self._acked: dict[int, int] = {}
        self._pending = dict(versions)

    def acknowledged_version(self, window: int) -> int:
        """Return the version up to which the sink has a window, -1 if it has nothing of it."""
        return self._acked.get(window, -1)

    def changed(self, windows: Iterable[int]) -> None:
        """Record that cells of these windows have changed."""
        for window in windows:
            version = self._versions.get(window, -1)
            if version > self._acked.get(window, -1):
                self._pending[window] = version

    def pending(self) -> dict[int, int]:
        """Return the windows, with their versions, that the sink has not acknowledged at these."""
        return dict(self._pending)

    def first_pending(self) -> int | None:
        """Return the oldest pending window, None if there is none."""
        return min(self._pending, default=None)

    def acknowledge(self, sent: Mapping[int, int]) -> None:
        """Record that the sink has these windows up to these versions."""
        for window, version in sent.items():
            has = self._acked[window] = max(version, self._acked.get(window, -1))
            if self._versions.get(window, -1) <= has:
                self._pending.pop(window, None)

    def forget(self, windows: Iterable[int]) -> None:
        """Forget windows that are evicted."""
        for window in windows:
            self._acked.pop(window, None)
            self._pending.pop(window, None)


def oldest_acknowledged(
    window: Window, floor_ms: int, versions: Mapping[int, int], sinks: Sequence[Acks], most: int
) -> list[int]:
    """Return the oldest windows, at most ``most``, up to the first that ends after a floor.

    They end before the first that some sink does not have at its version. It may be called with
    every delta, for 100,000s of windows.
    """

    def is_acknowledged(start: int) -> bool:
        return all(acks.acknowledged_version(start) >= versions[start] for acks in sinks)

    ordered = sorted(versions)
    sealed = bisect.bisect_right(ordered, floor_ms, key=window.end)
    return list(itertools.takewhile(is_acknowledged, ordered[: min(sealed, most)]))
