"""The text of a map, changed line by line, and the result of reading it."""

from __future__ import annotations

import pytest

from app.mapfile.load import parse_map
from tables.model.errors import MapError
from tables.model.layer import Map

BASE = """
revision = 3
name = "shop"

[sources.orders]
topic = "orders.raw"
partitions = 12
time = "@timestamp"
type = "type"
id = "orderId"
keyed_by = ["store"]

[sources.orders.fields]
store = "int"
vip = "bool"
country = "string"
amount = "int"
weight = "float"

[layers.minute]
source = "orders"
events = ["order.*"]
key = ["store", "country"]
window = "1m"
measures = ["count", "mean(amount)", "variance(weight)"]

[layers.hour]
from = "minute"
key = ["country"]
window = "1h"

[layers.day]
from = "hour"
key = ["country"]
window = "day"
"""


def changed(*changes: tuple[str, str]) -> str:
    """Return BASE with texts replaced; each must stand in it once."""
    text = BASE
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def problems_of(text: str) -> list[str]:
    """Return the problems for which the text is refused."""
    with pytest.raises(MapError) as caught:
        parse_map(text, "test")
    return caught.value.problems


def read(*changes: tuple[str, str]) -> Map:
    """Return the map of BASE with texts replaced."""
    return parse_map(changed(*changes), "test")
