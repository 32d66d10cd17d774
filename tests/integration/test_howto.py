"""The pages of docs/howto/: their commands and their code, on events of the test's own."""

from __future__ import annotations

import collections
import datetime as dt
import importlib.util
import json
import random
import re
from collections.abc import Iterator
from csv import DictReader
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.support.page_reader import Reader, Step, steps
from treasure_map import QueryClient

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DOCS = ROOT / "docs"
START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
NEEDS = {"import pandas as pd": ("pandas", "pyarrow"), "import duckdb, pyarrow": ("pyarrow",)}
"""Packages of blocks that are no packages of ours, by the first lines of the blocks."""

MAP = """
revision = 1
name = "{name}"
[sources.orders]
topic = "{topic}"
partitions = 3
time = "at"
type = "type"
[sources.orders.fields]
shop = "string"
cents = "int"
[layers.hour]
source = "orders"
events = ["**"]
key = ["shop"]
window = "1h"
measures = ["count"]
"""


def page_of(name: str) -> str:
    """Return the text of a page."""
    return (DOCS / f"{name}.md").read_text("utf-8")


def orders(count: int = 900) -> Iterator[dict[str, Any]]:
    """Yield orders, two in a minute; pytest prints the seed of all chance."""
    for number in range(count):
        at = START + dt.timedelta(seconds=30 * number)
        kind = random.choice(["order.paid", "order.line.added", "visit"])
        shop = random.choice(["Bonn", "Graz"])
        yield {"type": kind, "at": at.isoformat(), "shop": shop, "cents": random.randint(1, 900)}


def write(file: Path, events: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write events as lines; return them."""
    made = list(events)
    file.write_text("".join(json.dumps(event) + "\n" for event in made))
    return made


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Give a reader of a page, who keeps its names."""
    with Reader(tmp_path, {}) as one:
        yield one


def test_frames_have_the_rows_of_the_file(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that needs pandas or pyarrow is run if these are installed; a worker needs neither."""
    for step in steps(page_of("tutorial")):
        if "> rides.ndjson" in step.command or "map init" in step.command:
            reader.follow(step)
    page = page_of("howto/notebooks")
    csv = [reader.follow(step) for step in steps(page)][-1]
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        if all(map(importlib.util.find_spec, NEEDS.get(block.split("\n")[0], ()))):
            exec(block.replace("http://127.0.0.1:6066", reader.url), space)  # noqa: S102
    rides = [
        (ride["occurredAt"][:10], ride["payload"])
        for ride in map(json.loads, (tmp_path / "rides.ndjson").open(encoding="utf-8"))
        if ride["eventType"] == "ride.finished"
    ]
    cities = collections.Counter((day, ride["station"]["cityName"]) for day, ride in rides)
    names = sorted({city for _, city in cities})
    days = sorted({day for day, _ in cities})
    want = [tuple(cities[day, city] for city in names) for day in days]
    assert space["wide"].sort("window_start").select(names).rows() == want
    fares = collections.Counter(dict.fromkeys(names, 0))
    for _, ride in rides:
        fares[ride["station"]["cityName"]] += ride["fareCents"]
    found = space["days"].group_by("city_name").agg(sum=space["pl"].col("sum_fare_cents").sum())
    assert dict(found.rows()) == fares
    assert space["same"].drop("sum_fare_cents").equals(space["days"].drop("sum_fare_cents"))
    totals = [(name, sum(cities[day, name] for day in days)) for name in names]
    assert space["total"].fetchall() == totals
    of_bike = sum(ride["bike"] == "city" for _, ride in rides)
    assert space["cells"]["count"].sum() == of_bike
    assert sum(int(line["count"]) for line in DictReader(csv.splitlines())) == of_bike


def test_the_steps_from_faust_end_with_equal_rows(reader: Reader, tmp_path: Path) -> None:
    """They start from a topic that has events, and whose map nobody knows."""
    made = write(tmp_path / "orders.ndjson", orders())
    (tmp_path / "other.toml").write_text(MAP.format(name="other", topic="orders.raw"))
    for command in (
        "python -m app broker",
        "python -m app map apply other.toml",
        "python -m app produce orders.raw orders.ndjson --key shop",
    ):
        reader.follow(Step(command))
    for step in steps(page_of("howto/faust")):
        is_last = "verify" in step.command
        said = reader.follow(step, (lambda output: "all equal" in output) if is_last else None)
    assert re.search(rf"^ events.classified +{len(made):,} $", said, re.MULTILINE)
    proposed = (tmp_path / "orders.toml").read_text("utf-8")
    assert "partitions = 3" in proposed


def test_the_map_for_a_topology_folds_as_the_topology_does(reader: Reader, tmp_path: Path) -> None:
    """With events up to five minutes late, and none of another type."""
    page = page_of("howto/kafka-streams")
    [text] = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "orders.toml").write_text(text)
    for step in steps(page):
        said = reader.follow(step)
    assert "orders.feed.orders_hour" in said
    made = list(orders())
    keys = [(number + random.choice([0, 0, 0, 9]), number) for number in range(len(made))]
    write(tmp_path / "orders.ndjson", (made[number] for _, number in sorted(keys)))
    said = reader.follow(Step("python -m app try orders.toml orders.ndjson"))
    paid = [order for order in made if order["type"].startswith("order.")]
    assert f"{len(paid):,} folded into orders_hour\n" in said
    assert "too late" not in said
    with QueryClient(reader.url) as client:
        cells = client.cells("orders_day", {}, "2026-03-01", "2026-03-02").cells
    want: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for order in paid:
        want[order["shop"]][0] += 1
        want[order["shop"]][1] += order["cents"]
    assert {cell.key["shop"]: list(cell.measures.values()) for cell in cells} == want


def test_the_commands_of_production_are_those_of_its_servers(
    reader: Reader, tmp_path: Path
) -> None:
    """A broker in memory, which has one copy, stands for three here."""
    (tmp_path / "shop.toml").write_text(MAP.format(name="shop", topic="shop.raw"))
    reader.follow(Step("python -m app broker"))
    said = "".join(reader.follow(step) for step in steps(page_of("howto/production")))
    assert "shop.journal.shop.raw" in said
    assert "topics: 6 created with 3 copies of each partition, 0 existed" in said
    assert "'class': 'NetworkTopologyStrategy', 'datacenter1': 3" in said
    assert re.search(r"kafka-acls .*shop-worker", said)


def test_lateness_is_found_before_and_after(reader: Reader, tmp_path: Path) -> None:
    """The proposal covers the disorder; without it, the late events are counted and listed."""
    made = list(orders())
    keys = [(number + random.choice([0] * 9 + [61]), number) for number in range(len(made))]
    write(tmp_path / "rides.ndjson", (made[number] for _, number in sorted(keys)))
    *before, count, listed = steps(page_of("howto/lateness-and-partitions"))
    said = [reader.follow(step) for step in before]
    assert 'max_out_of_orderness = "30m"' in said[1]
    assert "too late" not in said[2]
    text = (tmp_path / "rides.toml").read_text("utf-8")
    (tmp_path / "rides.toml").write_text(text.replace('rderness = "30m"', 'rderness = "0s"'))
    text = (tmp_path / "rides.toml").read_text("utf-8")
    (tmp_path / "rides.toml").write_text(text.replace('lateness = "30m"', 'lateness = "0s"'))
    assert "too late" in reader.follow(before[2])
    for command in (
        "python -m app broker",
        "python -m app map apply rides.toml",
        "python -m app worker --map rides.toml",
        "python -m app produce rides.raw rides.ndjson --map rides.toml --settle",
    ):
        reader.follow(Step(command))
    late = 0

    def is_counted(output: str) -> bool:
        nonlocal late
        with QueryClient(reader.url) as client:
            ledger = client.ledger()
        late = sum(layer["too_late"] for layer in ledger["layers"].values())
        done = ledger["events"]["decoded"] >= len(made)
        return done and late > 0 and f"{late}" in output

    reader.follow(count, is_counted)
    assert "late by" in reader.follow(listed)
