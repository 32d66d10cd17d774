"""Background work that dies, in any way, is handed on; all work of a worker is supervised."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Awaitable, Callable

import polars as pl
import pytest
from polars.exceptions import PanicException

from agents.supervised import supervised
from tests import ROOT
from tests.support.waiting import until

# Tasks that somebody awaits, who gets their error.
AWAITED = {
    ("app/kafka/aiokafka_close.py", "consumer._fetcher.close()"),
    ("agents/partition/partition_io.py", "asyncio.to_thread(work, *args)"),
    ("agents/tasks.py", "work"),
    ("app/peers/remote_owners.py", "self._post(url, body, cost)"),
    ("app/kafka/transport.py", "stop(self._consumer)"),
    ("app/kafka/transport.py", "self.crash(reason)"),
    ("app/web/admission.py", "query"),
    ("tables/archive/cache.py", "self._fetch(layer, cells, cost)"),
    ("tables/archive/cassandra/archive.py", "lane()"),
    ("tables/threads.py", "lane()"),
}
# Commands that are not a worker.
COMMANDS = ("app/commands/", "app/demo", "app/deadletters/replay.py", "app/generate")


async def fail() -> None:
    """Raise a bug, or an error that an operator can mend."""
    raise ValueError("a bug")


async def panic() -> None:
    """Raise as polars does on a fault of its own: no Exception."""
    pl.select(pl.lit(1).map_batches(_panicking, return_dtype=pl.Int64))


def _panicking(_: pl.Series) -> pl.Series:
    raise PanicException("a fault")


async def lose() -> None:
    """Wait for a future that another one cancels, as a closed client does."""
    waited = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(waited.cancel)
    await waited


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (fail, "a bug"),
        (panic, "a fault"),
        (lose, "a background task ended: its awaitable was cancelled"),
    ],
)
async def test_whatever_ends_background_work_is_told(
    work: Callable[[], Awaitable[None]], reason: str
) -> None:
    """The task itself ends in order: nobody awaits it."""
    told: list[BaseException] = []
    await asyncio.create_task(supervised(work(), told.append))
    (error,) = told
    assert isinstance(error, Exception)
    assert reason in str(error)


async def test_work_that_is_cancelled_or_done_is_told_to_nobody() -> None:
    """These are the two ways it may end."""
    told: list[BaseException] = []
    task = asyncio.create_task(supervised(asyncio.Event().wait(), told.append))
    await asyncio.sleep(0)
    task.cancel()

    async def ended() -> bool:
        return task.done()

    await until(ended)
    assert task.cancelled()
    await supervised(asyncio.sleep(0), told.append)
    assert told == []


def test_every_background_task_of_a_worker_is_supervised() -> None:
    """A task that nobody awaits and nothing guards would die without a word."""
    found = set()
    for path in sorted(ROOT.glob("*/**/*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(("app/", "agents/", "tables/")) or name.startswith(COMMANDS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {
                "create_task",
                "ensure_future",
            }:
                work = ast.unparse(node.args[0])
                if not work.startswith("supervised("):
                    found.add((name, work))
    assert found == AWAITED
