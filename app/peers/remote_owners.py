"""Peers: the owners of all partitions, on this worker and on the others of its group.

The group's map has the owner of each partition. A worker answers for its own partitions only, so no
request is ever forwarded twice. Whoever does not answer soon is asked a second time, over another
connection; a partition that is on its way from one worker to another is asked for again until it is
there or the time for it has passed: then it is missing from the answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import ssl
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

import aiohttp

from app.peers.troubles import PeerError, Trouble, why_never
from app.peers.wire import ANSWER_BYTES_MAX, CONTENT_TYPE, PATH, decode_rows, encode_reads
from app.trust.proof import HEADER, PeerKey, ProofError
from tables.model.cost import QueryCost
from tables.model.layer import Map
from tables.model.topic_partition import TopicPartition
from tables.query.live import LiveJob, LiveRead, LiveRows
from tables.record.sealed import DamagedError
from tables.threads import THREADS, Threads
from treasure_map.status import WorkerAbout

HEDGE_S = 0.15
"""A worker answers in milliseconds; one that collects garbage or waits for its disk may not, and
a second try often finds the next owner."""

LAST_TRY_S = 0.25
"""The time that a worker has for its answer at least, if others have used up the time for all."""

AGAIN_S = 0.05

DECODE = "decode"
"""The kind of attempt that reading an answer is; see :class:`agents.outage.Outage`."""

AT_ONCE_ROWS_MAX = 10_000
"""Rows that are read in some 5 ms; more are read in a thread."""

AT_ONCE_BYTES_MAX = 1 << 18
"""Bytes of answers that are decoded in some 2 ms; more are decoded in a thread."""

REFUSAL_BYTES_MAX = 1 << 16
"""The largest refusal that is read; a worker's are a sentence or two."""

REFUSAL_CHARACTERS = 200
_UNTRUSTED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class _RefusalError(Exception):
    """A worker does not answer a request, for now."""


Local = Callable[[LiveRead], LiveJob]


class Peers:
    """``agents.query.reader.LiveSource`` over a group of workers.

    ``local`` reads the partitions of this worker; ``members`` returns the endpoint of each
    partition's owner, as of the last assignment. Without a key (no secret is set) requests are not
    signed. Workers are asked over TLS only if this one has it; without ``tls``, their
    certificates are checked by the system's authorities.

    Attributes:
        asked_total: requests to other workers.
        hedged_total: those of them that were second tries.
        failed_total: requests that were not answered.
    """

    def __init__(
        self,
        themap: Map,
        local: Local,
        members: Callable[[], Mapping[TopicPartition, str]],
        *,
        own_url: str,
        key: PeerKey | None = None,
        only_https: bool = False,
        tls: ssl.SSLContext | None = None,
        threads: Threads | None = None,
    ) -> None:
        self._map = themap
        self._local = local
        self._members = members
        self._own_url = own_url
        self._key = key
        self._tls = tls or True
        self._only_https = only_https
        self._troubles: dict[str, Trouble] = {}
        self._threads = threads or Threads(THREADS, "query")
        self._session: aiohttp.ClientSession | None = None
        self.asked_total = 0
        self.hedged_total = 0
        self.failed_total = 0

    async def close(self) -> None:
        """Close the connections to other workers."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def read(
        self, reads: Sequence[LiveRead], cost: QueryCost, until: float
    ) -> list[LiveRows]:
        """Return the live rows of owners; see :class:`agents.query.reader.LiveSource`."""
        found = [LiveRows() for _ in reads]
        loop = asyncio.get_running_loop()
        while lacking := self._lacking(reads, found):
            owners: dict[str, set[TopicPartition]] = {}
            members = self._members()
            for tp in lacking:
                owners.setdefault(members.get(tp, ""), set()).add(tp)
            owners.pop("", None)
            # Local rows first: the state may move while others are waited for.
            if (mine := owners.pop(self._own_url, None)) is not None:
                _add(found, await self._made([self._local(one) for one in self._of(reads, mine)]))
            left_s = max(LAST_TRY_S, until - loop.time())
            asks = [
                self._ask(url, self._of(reads, partitions), left_s, cost)
                for url, partitions in owners.items()
            ]
            for answer in await asyncio.gather(*asks):
                if answer is not None:
                    _add(found, answer)
            if not self._lacking(reads, found) or loop.time() + AGAIN_S >= until:
                break
            await asyncio.sleep(AGAIN_S)
        return found

    def _lacking(self, reads: Sequence[LiveRead], found: Sequence[LiveRows]) -> set[TopicPartition]:
        return {
            (self._map.input_topic(read.layer), partition)
            for read, rows in zip(reads, found, strict=True)
            for partition in read.asked - rows.facts.keys()
        }

    def _of(self, reads: Sequence[LiveRead], partitions: set[TopicPartition]) -> list[LiveRead]:
        """Return the same reads of these partitions only."""
        asked: dict[str, set[int]] = {}
        for topic, partition in partitions:
            asked.setdefault(topic, set()).add(partition)
        return [
            dataclasses.replace(
                read, partitions=read.asked & asked.get(self._map.input_topic(read.layer), set())
            )
            for read in reads
        ]

    async def _ask(
        self, url: str, reads: list[LiveRead], patience_s: float, cost: QueryCost
    ) -> list[LiveRows] | None:
        """Ask one worker, and once more if it does not answer soon; None without an answer."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_s
        body = encode_reads(self._map, reads)
        tries = {asyncio.create_task(self._post(url, body, cost))}
        hedge_s = HEDGE_S
        try:
            while tries and loop.time() < until:
                done, tries = await asyncio.wait(
                    tries,
                    timeout=min(hedge_s, until - loop.time()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    if (answer := task.result()) is not None:
                        return await self._decoded(url, reads, answer)
                if not done and hedge_s < math.inf:
                    hedge_s = math.inf
                    self.hedged_total += 1
                    tries.add(asyncio.create_task(self._post(url, body, cost)))
            if tries:
                # Neither has ended: a slow sender gets no more time than a worker that is gone.
                self.failed_total += len(tries)
                self._trouble(url).outage.failed(f"it has not answered within {patience_s:.2f} s")
            return None
        finally:
            for task in tries:
                task.cancel()

    async def _made(self, jobs: list[LiveJob]) -> list[LiveRows]:
        """Return the rows of this worker, made in a thread if they are many."""
        if sum(job.height for job in jobs) <= AT_ONCE_ROWS_MAX:
            return [job.make() for job in jobs]
        return await self._threads.run(lambda: [job.make() for job in jobs])

    async def _decoded(
        self, url: str, reads: list[LiveRead], answer: bytes
    ) -> list[LiveRows] | None:
        """Return a worker's answer, None if it is damaged or of another version."""
        try:
            if len(answer) <= AT_ONCE_BYTES_MAX:
                rows = decode_rows(reads, answer)
            else:
                rows = await self._threads.run(decode_rows, reads, answer)
        except DamagedError as error:
            self.failed_total += 1
            self._trouble(url).outage.failed(f"cannot read its live cells: {error}", DECODE)
            return None
        self._trouble(url).outage.answered(DECODE)
        return rows

    async def _post(self, url: str, body: bytes, cost: QueryCost) -> bytes | None:
        """Return the body of one answer, None if there is none."""
        self.asked_total += 1
        cost.workers_asked += 1
        trouble = self._trouble(url)
        try:
            answer = await self._answer(url, body)
        except (PeerError, ProofError, ssl.SSLError, aiohttp.ClientSSLError) as error:
            # Asking again does not help: a person has to mend it.
            trouble.found(str(error))
        except _RefusalError as error:
            trouble.outage.failed(error)
        except (aiohttp.ClientError, OSError) as error:
            trouble.outage.failed(repr(error))
        else:
            trouble.gone()
            trouble.outage.answered()
            return answer
        self.failed_total += 1
        return None

    async def _answer(self, url: str, body: bytes) -> bytes:
        """Return the body of one answer.

        Raises:
            PeerError: the URL must not be asked, the worker does not trust this one, or sends more
                than a worker does.
            _RefusalError: the worker refuses for another reason.
            ProofError: the answer is not signed by a worker of the group.
            aiohttp.ClientError, OSError: it does not answer, or its certificate is not trusted.
        """
        if why := why_never(url, only_https=self._only_https):
            raise PeerError(f"it is not asked: {why}")
        if self._session is None:
            # Workers compress nothing here; a stranger's small body could inflate to a large one.
            self._session = aiohttp.ClientSession(
                headers={"Content-Type": CONTENT_TYPE, "Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        proof = None if self._key is None else self._key.sign("POST", url, PATH, body)
        headers = {} if proof is None else {HEADER: proof.header}
        async with self._session.post(
            f"{url}{PATH}", data=body, headers=headers, ssl=self._tls, allow_redirects=False
        ) as response:
            if response.status != HTTPStatus.OK:
                answer = await _body(response, REFUSAL_BYTES_MAX)
                words = answer.decode(errors="replace")[:REFUSAL_CHARACTERS]
                kind = PeerError if response.status in _UNTRUSTED else _RefusalError
                raise kind(f"it refused to send its live cells: {words}")
            answer = await _body(response, ANSWER_BYTES_MAX)
            if self._key is not None and proof is not None:
                self._key.check_answer(proof, response.headers.get(HEADER, ""), answer)
            return answer

    def workers(self) -> list[WorkerAbout]:
        """Return the owners of partitions, and why one of them is not used."""
        owns: dict[str, dict[str, list[int]]] = {}
        for (topic, partition), url in sorted(self._members().items()):
            owns.setdefault(url, {}).setdefault(topic, []).append(partition)
        troubles = {url: trouble.why for url, trouble in self._troubles.items()}
        return [
            WorkerAbout(
                url, url == self._own_url, sum(map(len, topics.values())),
                troubles.get(url, ""), topics,
            )
            for url, topics in sorted(owns.items())
        ]  # fmt: skip

    def _trouble(self, url: str) -> Trouble:
        """Return the troubles with a worker; those of workers that have left are forgotten."""
        if url not in self._troubles:
            there = set(self._members().values())
            self._troubles = {at: known for at, known in self._troubles.items() if at in there}
            self._troubles[url] = Trouble(url)
        return self._troubles[url]


async def _body(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    """Return the body of an answer.

    Raises:
        PeerError: it is longer than ``bytes_max``, or says that it will be.
    """
    answer = bytearray()
    if (response.content_length or 0) <= bytes_max:
        async for part in response.content.iter_any():
            answer += part
            if len(answer) > bytes_max:
                break
        else:
            return bytes(answer)
    response.close()
    raise PeerError(f"its answer is longer than {bytes_max:,} bytes, which no worker's is")


def _add(found: Sequence[LiveRows], answer: Sequence[LiveRows]) -> None:
    for rows, more in zip(found, answer, strict=True):
        rows.add(more)
