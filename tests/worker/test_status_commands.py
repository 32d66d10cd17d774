"""``layers`` and ``status``: the workers of a group, asked through one of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from app.commands import layers, status
from app.commands.endpoint import AskedEndpoint, ask_group
from app.commands.status import runs
from tables.model.errors import QueryError
from tables.model.layer import Map
from tests.support.common import DAY_MS, HOUR_MS, dataclasses_replace, small_map
from tests.support.servers import free_ports
from tests.support.web_support import StandingView, in_thread, served
from treasure_map import QueryClient
from treasure_map.status import LayerStatus, WorkerAbout
from treasure_map.version import version

MAP = small_map()
HINT = "day has selected nothing of 9 events: it selects x; types seen: y"
TOKEN = "correct-horse-battery"  # noqa: S105 - no password of anything


async def run(command: Any, *arguments: str, **environment: str) -> Result:
    """Run a command beside the servers; its operating errors are raised."""
    return await in_thread(
        CliRunner().invoke, command, arguments, env=environment, catch_exceptions=False
    )


def row(name: str, **said: Any) -> LayerStatus:
    """Return the state of a layer."""
    return LayerStatus(
        name=name, open_cells=0, unacknowledged_windows=0, waiting_open_windows=0,
        archived_cells=0, watermark_ms=None, floor_ms=None, partitions=[0], whole_from={}, **said,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def pair(
    folder: Path, other: Map = MAP, **settings: Any
) -> AsyncIterator[tuple[StandingView, StandingView, str, list[WorkerAbout]]]:
    """Serve two workers; the first one knows both, with those that the test adds."""
    about: list[WorkerAbout] = []
    async with (
        served(MAP, folder / "a", workers=lambda: about, **settings) as (first, url),
        served(other, folder / "b", **settings) as (second, other_url),
    ):
        about += [
            WorkerAbout(url, own=True, partitions=3, problem="", owns={"raw": [0, 1, 3]}),
            WorkerAbout(other_url, own=False, partitions=1, problem="", owns={"raw": [2]}),
        ]
        yield first, second, url, about


async def test_layers_of_all_workers_are_one_table(tmp_path: Path) -> None:
    """A layer that some worker has selected events for is not one that has selected nothing."""
    async with pair(tmp_path) as (first, second, url, about):
        first.layers = lambda: [  # type: ignore[method-assign]
            row("hour", selected=1_234, first_ms=5 * HOUR_MS, last_ms=DAY_MS),
            row("day", hint=HINT),
        ]
        second.layers = lambda: [  # type: ignore[method-assign]
            row("hour", hint="hour has selected nothing", first_ms=HOUR_MS, last_ms=HOUR_MS),
            row("day", hint=HINT),
        ]
        result = await run(layers.command, "--url", url)
        assert result.exit_code == 0
        (hours,) = [line for line in result.stdout.splitlines() if line.split()[:1] == ["hour"]]
        for text in (
            "flights", "1h", "origin, carrier", "mean_delay", "1970-01-01T01:00:00Z",
            "1970-01-02T00:00:00Z", "1,234",
        ):  # fmt: skip
            assert text in hours
        assert HINT in result.stdout
        assert "hour has selected nothing" not in result.stdout
        assert "flights: no layer selects bird (6)" in result.stdout
        assert result.stderr == ""
        document = orjson.loads((await run(layers.command, "--json", "--url", url)).stdout)
        assert document["layers"][0]["selected"] == 1_234
        assert document["layers"][1] == {
            "name": "day", "from": "hour", "window": "1d", "key": ["carrier"],
            "measures": [measure.name for measure in MAP.layer("day").measures],
            "first_ms": None, "last_ms": None, "selected": 0, "hints": [HINT],
        }  # fmt: skip
        assert document["unselected"] == {"flights": {"bird": 6}}
        gone = f"http://127.0.0.1:{free_ports(1)[0]}"
        about[1] = WorkerAbout(gone, own=False, partitions=1, problem="")
        result = await run(layers.command, "--url", url)
        assert "no layer selects bird (3)" in result.stdout
        assert f"without the counts of {gone}: cannot reach {gone}" in result.stderr


async def test_the_status_has_every_worker_of_the_group(tmp_path: Path) -> None:
    """Who has which partitions, how far behind, of which revision, and why it is not ready."""
    later = dataclasses_replace(MAP, revision=2)
    async with pair(tmp_path, later) as (first, second, url, about):
        first.lag = lambda: {"raw": {"0": 7, "3": 1_000}}  # type: ignore[method-assign]
        first.serving = lambda: {"raw": [0, 1, 3]}  # type: ignore[method-assign]
        second.reasons = ["restoring 1 partitions", "7 records behind"]
        second.mend = ["the group has a member that is not a worker"]
        result = await run(status.command, "--url", url)
        assert result.exit_code == 1
        one, other = (line.split() for line in result.stdout.splitlines()[1:3])
        assert one == [url, "ready", "small", "1", version(), "1007", "raw[0-1,3]"]
        assert other[:6] == [about[1].url, "not", "ready", "small", "2", version()]
        assert " ".join(other[6:]) == "- raw[2] (not serving 2)"
        for text in ("restoring 1 partitions", "7 records behind", "warning: the group has a"):
            assert f"{about[1].url}: {text}" in result.stdout
        assert "several revisions: 1, 2" in result.stderr
        document = orjson.loads((await run(status.command, "--json", "--url", url)).stdout)
        assert document["map_revisions"] == [1, 2]
        assert document["workers"][1]["reasons"] == second.reasons
        assert document["workers"][0]["lag"] == {"raw": {"0": 7, "3": 1_000}}


async def test_the_status_is_a_check_for_scripts(tmp_path: Path) -> None:
    """All ready is 0; a worker that does not answer is 1, and so is one that is not trusted."""
    async with pair(tmp_path) as (_, _, url, about):
        assert (await run(status.command, "--url", url)).exit_code == 0
        gone = f"http://127.0.0.1:{free_ports(1)[0]}"
        about[1] = WorkerAbout(gone, own=False, partitions=1, problem="it has another secret")
        result = await run(status.command, "--url", url)
        assert (result.exit_code, "no answer" in result.stdout) == (1, True)
        assert f"{gone}: it has another secret" in result.stdout
        assert f"{gone}: cannot reach {gone}" in result.stdout
        # One that owns nothing is asked too.
        about.clear()
        result = await run(status.command, "--url", url)
        assert (result.exit_code, "none" in result.stdout) == (0, True)
        with pytest.raises(QueryError, match="start a worker there"):
            await run(status.command, "--url", gone)


async def test_a_token_is_wanted_and_goes_to_no_plain_endpoint(tmp_path: Path) -> None:
    """A worker that others name could be anybody's."""
    async with pair(tmp_path, web_token=TOKEN) as (_, _, url, _):
        with pytest.raises(QueryError, match="set TREASURE_MAP_WEB_TOKEN, or"):
            await run(status.command, "--url", url)
        found = await run(status.command, "--url", url, TREASURE_MAP_WEB_TOKEN=TOKEN)
        assert found.exit_code == 0
        asked: list[str] = []

        class Noted(AskedEndpoint):
            """An endpoint with TLS, as far as its address goes, that notes who is asked."""

            def client(self, other: str | None = None, timeout_s: float = 9.0) -> QueryClient:
                """Return a client of the plain endpoint."""
                asked.append(other or self.url)
                return QueryClient(other or url, TOKEN, timeout_s)

        endpoint = Noted("https://127.0.0.1:1", TOKEN, None)
        told = await in_thread(ask_group, endpoint, QueryClient.ready)
        assert [one.problem.startswith("not asked: it speaks no TLS") for one in told] == [
            False, True,
        ]  # fmt: skip
        assert asked == [endpoint.url, endpoint.url]


@given(st.sets(st.integers(0, 30)))
def test_runs_of_numbers_name_each_once(numbers: set[int]) -> None:
    """Neighbours are one run."""
    found: list[int] = []
    for part in filter(None, runs(sorted(numbers)).split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(numbers)
