"""Workers queried over HTTP: whether the job is quiescent, the ledger, and every row of a layer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import polars as pl

from app.verify.errors import RefusedError, VerifyError
from app.verify.whole import Whole
from app.verify.windows import first_window, window_end, window_nominal_ms
from tables.model.layer import Layer, Map
from treasure_map.query import QueryClient, QueryFailedError
from treasure_map.status import LayerStatus

_ROWS_PER_RANGE = 5_000
"""Each page is read anew by the worker, so a range of many pages costs the square of them."""

_PARTITIONS_PER_RANGE = 4_000
"""Partitions of the archive that one request reads; a worker refuses more than 20,000."""

_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_BUCKET_WINDOWS = 32
_RETRIES = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Quiet:
    """The progress of all workers. ``busy`` names unfinished work; empty if all is quiescent."""

    positions: dict[tuple[str, int], int]
    busy: str
    whole: Whole = dataclasses.field(default_factory=Whole)


class Workers(contextlib.AbstractAsyncContextManager["Workers"]):
    """All workers of one group.

    Args:
        themap: the map that they must run.
        urls: the endpoint of each.
        token: their bearer token, if they have one.
        ca_file: PEM file of the authority of their certificates; None uses the system's.
        early: whether they send the cells of open windows too, once nothing comes.
        page_cells: how many cells a page of an answer may have.
    """

    def __init__(
        self,
        themap: Map,
        urls: Sequence[str],
        token: str | None,
        ca_file: str | None,
        *,
        early: bool,
        page_cells: int,
    ) -> None:
        self._map = themap
        self._early = early
        self._page_cells = page_cells
        self._clients = {url: QueryClient(url, token, ca_file=ca_file) for url in urls}

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    async def check_map(self) -> None:
        """Raise VerifyError if a worker runs another map."""
        for url in self._clients:
            found = await self._ask(url, QueryClient.map)
            if found["digest"] != self._map.digest:
                raise VerifyError(
                    f"cannot verify {url}: it runs another map; got {found['name']} revision"
                    f" {found['revision']}, digest {found['digest']}; want {self._map.digest}; give"
                    " the map file of the workers"
                )

    async def ledgers(self) -> dict[str, dict[str, Any]]:
        """Return the ledger of every worker, by its URL."""
        return {url: await self._ask(url, QueryClient.ledger) for url in self._clients}

    async def quiet(self, ends: Mapping[tuple[str, int], int]) -> Quiet:
        """Return the progress of all workers, and their unfinished work up to these ends.

        Raises:
            RefusedError: a worker does not answer this token.
        """
        positions: dict[tuple[str, int], int] = {}
        reported: list[LayerStatus] = []
        for url in self._clients:
            try:
                ledger = await self._ask(url, QueryClient.ledger)
                layers = await self._ask(url, QueryClient.layers)
            except RefusedError:
                raise
            except VerifyError as error:
                return Quiet({}, str(error))
            for topic, rows in ledger["records"].items():
                for number, row in rows.items():
                    partition = (topic, int(number))
                    if partition in positions:
                        return Quiet({}, f"{topic}[{number}] is owned by two workers")
                    positions[partition] = row["position"]
            reported += layers
            waiting = [
                row.name
                for row in layers
                if row.unacknowledged_windows or (self._early and row.waiting_open_windows)
            ]
            if waiting:
                return Quiet({}, f"{url} has not sent all windows of {', '.join(waiting)}")
        if missing := self.missing(positions, ends):
            return Quiet({}, missing)
        whole = Whole.of(reported)
        which = ", ".join(sorted(whole.unknown))
        busy = which and f"the time from which {which} is whole is not known yet"
        return Quiet({} if busy else positions, busy, whole)

    def missing(
        self, positions: Mapping[tuple[str, int], int], ends: Mapping[tuple[str, int], int]
    ) -> str:
        """Return the partition that is not at its end; an empty text if all are."""
        for partition, end in sorted(ends.items()):
            name = f"{partition[0]}[{partition[1]}]"
            if partition not in positions:
                urls = ", ".join(self._clients)
                return f"{name} is not owned by {urls}; give --url of every worker"
            if positions[partition] != end:
                return f"{name} is at {positions[partition]} of {end}"
        return ""

    @property
    def urls(self) -> list[str]:
        """The endpoints, in the order of their numbers."""
        return list(self._clients)

    async def rows(
        self,
        layer: Layer,
        starts: Iterable[tuple[int, int]],
        *,
        everywhere: bool,
        since_ms: int | None = None,
    ) -> AsyncGenerator[tuple[int, pl.DataFrame]]:
        """Yield the answers of each worker, by the number of its URL: some rows at a time.

        Args:
            layer: the layer.
            starts: starts of windows, in order, with how many rows are expected of each; the ranges
                queried hold them and all between.
            everywhere: whether any range of times may be queried, because the archive reads it by
                its rows, not by its length.
            since_ms: the earliest time that can be queried, unless that is always.
        """
        for start, last in _ranges(layer, starts, everywhere):
            # The endpoint answers with every window that a range touches, so ranges begin and end
            # where windows do: each window is in one.
            first = first_window(layer, start if since_ms is None else max(start, since_ms))
            last = min(first_window(layer, last), _TIME_LAST)  # noqa: PLW2901 - the same end
            if first >= last:
                continue
            question = functools.partial(
                QueryClient.cells_frame, layer=layer.name, key={}, from_time=first, to_time=last,
                page_cells=self._page_cells,
            )  # fmt: skip
            for number, url in enumerate(self._clients):
                yield number, await self._ask(url, question)

    async def _ask(self, url: str, question: Any) -> Any:
        """Query a worker, again if it says that it is busy; VerifyError if it does not answer."""
        for attempt in range(_RETRIES + 1):
            try:
                return await asyncio.to_thread(question, self._clients[url])
            except (QueryFailedError, OSError) as error:
                if getattr(error, "status", None) in _REFUSED:
                    raise RefusedError(
                        f"cannot ask {url}: {error}; give one with the scopes read and admin in"
                        " web_token or web_token_file"
                    ) from error
                after = getattr(error, "retry_after_s", None)
                if after is None or attempt == _RETRIES:
                    raise VerifyError(f"cannot ask {url}: {error}") from error
                await asyncio.sleep(after)
        raise AssertionError("the last attempt returns or raises")


_TIME_FIRST, _TIME_LAST = -62_135_596_800_000 - 36_500 * 86_400_000, 253_402_300_800_000
"""The least and the greatest time of a query."""


def _ranges(
    layer: Layer, starts: Iterable[tuple[int, int]], everywhere: bool
) -> Iterator[tuple[int, int]]:
    """Cut times into ranges ``[first, last)`` of not too many rows, or parts of the archive.

    They cover all times, or the expected windows, some before and after them, and all gaps between
    but very long ones.
    """
    margin = _BUCKET_WINDOWS * window_nominal_ms(layer)
    span = margin * max(1, _PARTITIONS_PER_RANGE // layer.slots)
    if everywhere:
        span = _TIME_LAST - _TIME_FIRST
    first: int | None = _TIME_FIRST if everywhere else None
    rows, end = 0, _TIME_FIRST
    for start, count in starts:
        if first is None:
            first = max(_TIME_FIRST, start - margin)
        elif start - first > span:
            yield first, min(start, end + margin)
            first, rows = max(min(start, end + margin), start - margin), 0
        elif rows >= _ROWS_PER_RANGE:
            yield first, start
            first, rows = start, 0
        rows, end = rows + count, window_end(layer, start)
    if first is not None:
        yield first, _TIME_LAST if everywhere else min(_TIME_LAST, end + margin)
