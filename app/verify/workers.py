"""Workers asked over HTTP: whether all is quiet, what the ledger says, and every row of a layer."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from app.verify.partition import Place
from app.verify.topics import VerifyError
from app.verify.windows import window_end, window_nominal_ms
from client.query import Cell, QueryClient, QueryFailedError
from tables.layer import Layer, Map

_ROWS_PER_RANGE = 5_000
"""Each page is read anew by the worker, so a range of many pages costs the square of them."""

_PARTITIONS_PER_RANGE = 4_000
"""Partitions of the archive that one request reads; a worker refuses more than 20,000."""

_BUCKET_WINDOWS = 32
_RETRIES = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Quiet:
    """How far all workers are. ``busy`` says what is not done yet; empty where all is quiet."""

    positions: dict[tuple[str, int], int]
    busy: str


class Workers:
    """All workers of one group.

    Args:
        themap: the map that they must run.
        urls: the endpoint of each.
        token: their bearer token, if they have one.
        ca_file: PEM file of the authority of their certificates; None takes the system's.
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

    async def __aenter__(self) -> Self:
        """Connect to nothing yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        for client in self._clients.values():
            client.close()

    async def check_map(self) -> None:
        """Refuse workers that run another map.

        Raises:
            VerifyError: some do.
        """
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
        """Return how far all are, and what is not done where the topics have these ends."""
        positions: dict[tuple[str, int], int] = {}
        for url in self._clients:
            try:
                ledger = await self._ask(url, QueryClient.ledger)
                layers = await self._ask(url, QueryClient.layers)
            except VerifyError as error:
                return Quiet({}, str(error))
            for topic, rows in ledger["records"].items():
                for number, row in rows.items():
                    place = (topic, int(number))
                    if place in positions:
                        return Quiet({}, f"{topic}[{number}] is owned by two workers")
                    positions[place] = row["position"]
            waiting = [
                row["name"]
                for row in layers
                if row["unacknowledged_windows"] or (self._early and row["waiting_open_windows"])
            ]
            if waiting:
                return Quiet({}, f"{url} has not sent all windows of {', '.join(waiting)}")
        for place, end in sorted(ends.items()):
            where = f"{place[0]}[{place[1]}]"
            if place not in positions:
                return Quiet({}, f"{where} is owned by none of {', '.join(self._clients)}")
            if positions[place] != end:
                return Quiet({}, f"{where} is at {positions[place]} of {end}")
        return Quiet(positions, "")

    async def rows(
        self, layer: Layer, places: Iterable[Place], *, everywhere: bool
    ) -> dict[str, dict[Place, Cell]]:
        """Return the rows that each worker answers with, by its URL.

        Args:
            layer: the layer.
            places: where rows are expected; the ranges asked for hold them and what is between.
            everywhere: whether all times there are may be asked for: where the archive reads a
                range by its rows, not by its length.
        """
        ranges = list(_ranges(layer, sorted(start for _, start in places), everywhere))
        found: dict[str, dict[Place, Cell]] = {}
        for url in self._clients:
            found[url] = {}
            for first, last in ranges:
                for cell in await self._cells(url, layer, first, last):
                    key = tuple(cell.key[field.name] for field in layer.key)
                    found[url][key, cell.window_start] = cell
        return found

    async def _cells(self, url: str, layer: Layer, first: int, last: int) -> list[Cell]:
        answer = await self._ask(
            url,
            lambda client: client.cells(layer.name, {}, first, last, page_cells=self._page_cells),
        )
        assert not answer.more, "no limit was given"
        return list(answer.cells)

    async def _ask(self, url: str, question: Any) -> Any:
        """Ask a worker, again where it is told to be busy.

        Raises:
            VerifyError: it does not answer.
        """
        for attempt in range(_RETRIES + 1):
            try:
                return await asyncio.to_thread(question, self._clients[url])
            except (QueryFailedError, OSError) as error:
                after = getattr(error, "retry_after_s", None)
                if after is None or attempt == _RETRIES:
                    raise VerifyError(f"cannot ask {url}: {error}") from error
                await asyncio.sleep(after)
        raise AssertionError("the last attempt returns or raises")


_TIME_FIRST, _TIME_LAST = -62_135_596_800_000 - 36_500 * 86_400_000, 253_402_300_800_000
"""The least and the greatest time that a query takes."""


def _ranges(layer: Layer, starts: list[int], everywhere: bool) -> Iterator[tuple[int, int]]:
    """Cut times into ranges ``[first, last)`` of not too many rows, or parts of the archive.

    They cover all times, or the expected windows, some before and after them, and all gaps between
    but very long ones.
    """
    if not starts:
        if everywhere:
            yield _TIME_FIRST, _TIME_LAST
        return
    margin = _BUCKET_WINDOWS * window_nominal_ms(layer)
    span = margin * max(1, _PARTITIONS_PER_RANGE // layer.slots)
    if everywhere:
        span = _TIME_LAST - _TIME_FIRST
    first = _TIME_FIRST if everywhere else max(_TIME_FIRST, starts[0] - margin)
    rows = 0
    for index, start in enumerate(starts):
        after = starts[index + 1] if index + 1 < len(starts) else None
        rows += 1
        if after == start:
            continue
        end = window_end(layer, start)
        if after is None:
            yield first, _TIME_LAST if everywhere else min(_TIME_LAST, end + margin)
        elif after - first > span:
            yield first, min(after, end + margin)
            first, rows = max(min(after, end + margin), after - margin), 0
        elif rows >= _ROWS_PER_RANGE:
            yield first, after
            first, rows = after, 0
