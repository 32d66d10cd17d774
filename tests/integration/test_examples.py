"""The examples run as their docstrings say, each as a program of its own, against a real worker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import orjson
import pytest

from app.demo.flights.events import MAP_FILE
from tests import ROOT
from tests.support.waiting import until
from tests.support.worker_process import SECONDS_MAX, Process, apply
from treasure_map import QueryClient, Range

EXAMPLES = ROOT / "examples"
DAY = Range("2026-03-01", "2026-03-02", group=["city"], measures=["sum_cents"])
LINES_MAX = 40
JANUARY_MS = 1_356_998_400_000
HOUR_MS = 3_600_000
MARCH_MS = JANUARY_MS + 59 * 24 * HOUR_MS


def departed(number: int, at: int, origin: str, carrier: str) -> bytes:
    """Return one flight's departure."""
    event = {"id": f"{number}", "type": "flight.departed", "at": at, "origin": origin}
    return orjson.dumps(event | {"carrier": carrier, "delay_min": number})


async def run(name: str, *arguments: str) -> str:
    """Run an example to its end, which must be a good one; return its output."""

    def wait() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments], cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    done = await asyncio.to_thread(wait)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_examples_are_short_and_say_how_to_run_them() -> None:
    """Each fits on a screen, and every one of them is run below."""
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert names == [
        "chart.py", "follow.py", "frame.py", "live.py", "produce.py", "query.py", "query_async.py",
    ]  # fmt: skip
    for name in names:
        text = (EXAMPLES / name).read_text("utf-8")
        assert text.count("\n") < LINES_MAX
        assert f"python examples/{name} " in text.split('"""')[1]
        assert "pip install" in text.split('"""')[1]


@pytest.mark.slow
async def test_every_query_shows_what_a_worker_has(
    processes: Callable[..., Process], tmp_path: Path
) -> None:
    """Five flights of the demo's map, of which the feed has those whose hours are closed."""
    worker = processes()
    topic = f"{worker.map_name}.feed.departures_hour"
    text = MAP_FILE.read_text("utf-8").replace('name = "flights"', f'name = "{worker.map_name}"')
    text = text.replace("[layers.departures_hour]", "[layers.departures_hour]\npublish = true")
    worker.map_file.write_text(text)
    await apply(worker)
    worker.start()
    await worker.ready()
    await worker.send(
        "flights.raw",
        (0, departed(1, JANUARY_MS, "JFK", "UA")),
        (0, departed(2, JANUARY_MS + 1, "JFK", "UA")),
        (0, departed(3, MARCH_MS, "JFK", "DL")),
        (1, departed(4, JANUARY_MS + HOUR_MS, "LGA", "DL")),
        (1, departed(5, MARCH_MS, "LGA", "DL")),
    )

    async def closed() -> bool:
        return (await run("follow.py", topic, worker.settings["brokers"])).count("\n") == 2

    await until(closed, SECONDS_MAX)
    assert await run("follow.py", topic, worker.settings["brokers"]) == (
        f"{JANUARY_MS} JFK UA 2\n{JANUARY_MS + HOUR_MS} LGA DL 1\n"
    )
    url = f"http://127.0.0.1:{worker.port}"
    assert await run("query.py", url) == (
        "1 cells of JFK on the first day of the year\n"
        f"DL {JANUARY_MS} 1\n"
        f"UA {JANUARY_MS} 2\n"
        f"DL {MARCH_MS} 2\n"
        "these rows are exact\n"
        "most departures: {'origin': 'JFK', 'carrier': 'UA'} 2\n"
    )
    assert await run("query_async.py", url) == (
        "scheduled_hour exact {}\n"
        "departures_hour exact {'DL': 3, 'UA': 2}\n"
        "cancellations_day exact {}\n"
    )
    assert await run("frame.py", url) == "JFK 2013-01-01 2\nLGA 2013-01-01 1\n"
    live = await run("live.py", url, "2")
    assert sorted(live.splitlines()) == [f"JFK {MARCH_MS} 1 open", f"LGA {MARCH_MS} 1 open"]
    assert await run("chart.py", url, str(tmp_path / "chart.svg")) == ""
    chart = ET.parse(tmp_path / "chart.svg").getroot()  # noqa: S314 - made just now
    texts = [one.text for one in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["3", "Jan", "2", "Mar"]
    heights = [one.get("height") for one in chart.iter("{http://www.w3.org/2000/svg}rect")]
    assert heights == ["200", "133"]


@pytest.mark.slow
async def test_written_events_come_into_the_layers(processes: Callable[..., Process]) -> None:
    """Those of the example are all on the layers of the map that it names."""
    worker = processes()
    worker.map_file.write_text((EXAMPLES / "shop.toml").read_text("utf-8"))
    await apply(worker)
    worker.start()
    await worker.ready()
    said = await run("produce.py", worker.settings["brokers"])
    assert said == "wrote 14 sales to till.raw\n"

    def sold() -> dict[object, object]:
        with QueryClient(f"http://127.0.0.1:{worker.port}") as client:
            found = client.rows("sales_hour", DAY)
        return {row.key["city"]: row.measures["sum_cents"] for row in found.rows}

    async def all_are_sold() -> bool:
        return await asyncio.to_thread(sold) == {"Bonn": 7 * 300, "Graz": 7 * 450}

    await until(all_are_sold, SECONDS_MAX)
