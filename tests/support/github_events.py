"""Events as GitHub tells them: nested, of several types, some unusable, and the map for them."""

from __future__ import annotations

import collections
import datetime as dt
import json
import random
from typing import Any

MAP = """
revision = 1
name = "github"
[sources.github]
topic = "github.raw"
partitions = 3
time = "created_at"
type = "type"
id = "id"
keyed_by = ["repo"]
[sources.github.fields]
repo = {path = "repo.name", type = "string"}
login = {path = "actor.login", type = "string"}
size = {path = "payload.size", type = "int"}
[layers.pushes_hour]
source = "github"
events = ["PushEvent"]
key = ["repo"]
window = "1h"
max_out_of_orderness = "1m"
measures = ["count", "sum(size)"]
[layers.pushes_day]
from = "pushes_hour"
key = ["repo"]
window = "1d"
partitions = 2
[layers.actors_day]
source = "github"
events = ["PushEvent", "WatchEvent"]
key = ["login"]
window = "1d"
max_out_of_orderness = "1m"
partitions = 2
measures = ["count"]
"""
START = dt.datetime(2024, 3, 1, tzinfo=dt.UTC)
TYPES = ("PushEvent", "PushEvent", "WatchEvent", "ForkEvent")

Rows = dict[tuple[str, str], tuple[int, ...]]
"""By the text of a window's start and the key, the measures."""


def events(count: int = 600, seed: int = 5) -> list[dict[str, Any]]:
    """Return events in order of their times, over a little more than two days."""
    chance = random.Random(seed)  # repeatable
    made = []
    for number in range(count):
        kind = chance.choice(TYPES)
        event: dict[str, Any] = {
            "id": str(30_000_000_000 + number),
            "type": kind,
            "actor": {"id": number % 7, "login": f"user-{number % 7}"},
            "repo": {"id": number % 5, "name": f"owner/repo-{number % 5}"},
            "payload": {"size": chance.randint(1, 9)} if kind == "PushEvent" else {},
            "created_at": text_of(START + dt.timedelta(seconds=300 * number)),
        }
        made.append(event)
    return made


def text_of(at: dt.datetime) -> str:
    """Return a time as GitHub writes it."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def lines(made: list[dict[str, Any]]) -> bytes:
    """Return events as lines of JSON."""
    return b"".join(json.dumps(event).encode() + b"\n" for event in made)


def expected(made: list[dict[str, Any]]) -> dict[str, Rows]:
    """Return the rows of each layer, recomputed from the events one by one."""
    hour: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0])
    day: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0, 0])
    actors: dict[tuple[str, str], list[int]] = collections.defaultdict(lambda: [0])
    for event in made:
        at = event["created_at"]
        starts = f"{at[:13]}:00:00Z", f"{at[:10]}T00:00:00Z"
        if event["type"] == "PushEvent":
            for rows, start in ((hour, starts[0]), (day, starts[1])):
                row = rows[start, event["repo"]["name"]]
                row[0] += 1
                row[1] += event["payload"]["size"]
        if event["type"] in ("PushEvent", "WatchEvent"):
            actors[starts[1], event["actor"]["login"]][0] += 1
    found = {"pushes_hour": hour, "pushes_day": day, "actors_day": actors}
    return {
        name: {place: tuple(row) for place, row in rows.items()} for name, rows in found.items()
    }
