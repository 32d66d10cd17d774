"""The map file: its result, and every way in which it is refused."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.mapfile.load import MAP_BYTES_MAX, digest_of, load_map, parse_map
from tables.model.errors import MapError
from tables.model.layer import Condition, KeyField, Layer, Measure
from tables.model.window import DAY_MS, Window
from tests import ROOT
from tests.support.map_text import BASE, changed, problems_of, read

FLIGHTS = ROOT / "app" / "demo" / "flights" / "map.toml"
HOUR_MS = 3_600_000


def columns(layer: Layer) -> list[str]:
    """Return the layer's accumulator columns in order."""
    return [acc.column for acc in layer.accumulators]


def test_the_example_map_is_read() -> None:
    """The map of the demo has its layers, each right after the one that it is made from."""
    themap = load_map(FLIGHTS)
    assert [source.name for source in themap.sources] == ["flights", "radar"]
    assert [layer.name for layer in themap.layers] == [
        "arrivals_by_destination_day",
        "arrivals_by_destination_month",
        "arrivals_day",
        "cancellations_day",
        "cancellations_month",
        "contacts_5s",
        "contacts_minute",
        "contacts_hour",
        "departures_hour",
        "departures_day",
        "departures_month",
        "scheduled_hour",
        "scheduled_day",
        "scheduled_month",
    ]
    month = themap.layer("departures_month")
    assert month.key == (KeyField("carrier", "string"),)
    assert month.window == Window(0)
    assert columns(month) == [
        "events",
        "n_delay_min",
        "sum_delay_min",
        "min_delay_min",
        "max_delay_min",
        "sqlo_delay_min",
        "sqhi_delay_min",
    ]
    assert themap.inputs()["flights.layer.departures_month"] == 2
    merged = [layer.name for layer in themap.layers if layer.merged]
    assert merged == ["arrivals_by_destination_day"]


def test_every_field_of_a_source_is_read() -> None:
    """All that a source may say, with units."""
    source = read(
        ('id = "orderId"', 'id = "orderId"\ntime_unit = "s"\nfuture_skew = "2h"\nids_max = 7000'),
        ('keyed_by = ["store"]', 'keyed_by = ["store"]\nidle_heartbeat = "5s"'),
    ).source("orders")
    assert (source.topic, source.partitions, source.keyed_by) == ("orders.raw", 12, ("store",))
    assert (source.time_field, source.type_field, source.id_field) == (
        "@timestamp",
        "type",
        "orderId",
    )
    assert source.ids_max == 7_000
    assert (source.time_unit_ms, source.future_skew_ms, source.idle_heartbeat_ms) == (
        1_000,
        2 * HOUR_MS,
        5_000,
    )
    assert [field.name for field in source.fields] == [
        "amount",
        "country",
        "store",
        "vip",
        "weight",
    ]


def test_what_a_source_does_not_say_has_defaults() -> None:
    """Milliseconds, a day of skew, no heartbeat, no id."""
    source = read(('id = "orderId"\n', "")).source("orders")
    assert (source.id_field, source.time_unit_ms) == (None, 1)
    assert (source.future_skew_ms, source.idle_heartbeat_ms) == (600_000, 0)


def test_every_field_of_a_base_layer_is_read() -> None:
    """All that a base layer may say; values in the filter have the type of their field."""
    options = """window = "1m"
max_out_of_orderness = "500ms"
allowed_lateness = "2s"
archive_ttl = "7d"
slots = 4
where = [
    {field = "weight", op = ">", value = 2},
    {field = "country", op = "in", value = ["nl", "be"]},
    {field = "vip", op = "==", value = true},
]"""
    layer = read(('window = "1m"', options)).layer("minute")
    assert (layer.source, layer.finer, layer.partitions) == ("orders", None, 12)
    assert (layer.max_out_of_orderness_ms, layer.allowed_lateness_ms) == (500, 2_000)
    assert (layer.archive_ttl_ms, layer.slots) == (7 * DAY_MS, 4)
    assert layer.where == (
        Condition("weight", ">", 2.0),
        Condition("country", "in", ("nl", "be")),
        Condition("vip", "==", value=True),
    )
    assert isinstance(layer.where[0].value, float)


def test_a_coarser_layer_takes_over_what_it_does_not_name() -> None:
    """Measures and accumulators come from the finer layer, partitions are its own, at most 8."""
    themap = read(('"1h"', '"1h"\npartitions = 5'))
    minute, hour, day = themap.layers
    assert minute.measures == (Measure("count"), Measure("mean", "amount"),
                               Measure("variance", "weight"))  # fmt: skip
    assert hour.measures == day.measures == minute.measures
    assert hour.accumulators == day.accumulators == minute.accumulators
    assert (minute.partitions, hour.partitions, day.partitions) == (12, 5, 5)
    assert (hour.max_out_of_orderness_ms, hour.allowed_lateness_ms) == (0, 0)
    assert read().layer("hour").partitions == 8


def test_a_coarser_layer_may_compute_what_the_finer_one_can() -> None:
    """A variance holds n and sum, so a mean needs no more of the finer layer."""
    hour = read(('"1h"', '"1h"\nmeasures = ["mean(weight)", "sum(amount)"]')).layer("hour")
    assert columns(hour) == ["events", "n_weight", "sum_weight", "n_amount", "sum_amount"]


@pytest.mark.parametrize(
    ("measures", "wanted"),
    [
        (["count"], []),
        (["sum(amount)"], ["n_amount", "sum_amount"]),
        (["mean(amount)", "count"], ["n_amount", "sum_amount"]),
        (["max(amount)", "min(amount)"], ["n_amount", "min_amount", "max_amount"]),
        (["min(weight)"], ["n_weight", "min_weight"]),
        (
            ["variance(amount)"],
            ["n_amount", "sum_amount", "sqlo_amount", "sqhi_amount"],
        ),
        (["variance(weight)"], ["n_weight", "sum_weight", "m2_weight"]),
        (
            ["min(weight)", "sum(amount)", "mean(weight)"],
            ["n_weight", "sum_weight", "min_weight", "n_amount", "sum_amount"],
        ),
    ],
)
def test_measures_decide_what_is_stored(measures: list[str], wanted: list[str]) -> None:
    """Events first, then by field in order of first use, kinds in their fixed order."""
    layer = read(
        ('measures = ["count", "mean(amount)", "variance(weight)"]', f"measures = {measures}")
    ).layer("minute")
    assert columns(layer) == ["events", *wanted]
    assert {acc.type for acc in layer.accumulators if acc.field == "weight"} <= {"float"}
    assert {acc.type for acc in layer.accumulators if acc.field != "weight"} == {"int"}


# Each case: the change to BASE, the place that must be named, and the words that must be said.
REFUSED: list[tuple[str, str, str, str]] = [
    # the file
    ("revision = 3", "", "revision", "missing; want a whole number"),
    ("revision = 3", "revision = 0", "revision", "got 0; want 1 to 2147483647"),
    ("revision = 3", "revision = true", "revision", "wrong type; got True"),
    ("revision = 3", "revision = 3\nrevison = 4", "revison", "did you mean 'revision'?"),
    ('name = "shop"', 'name = "Shop"', "name", "not a safe name; got 'Shop'"),
    ('name = "shop"', f'name = "{"s" * 41}"', "name", "not a safe name"),
    ('name = "shop"', 'name = "shop; drop"', "name", "not a safe name"),
    # feeds
    ('"1h"', '"1h"\npublish = "avro"', "layers.hour.publish", "no form of a feed; got 'avro'"),
    ('"1h"', '"1h"\npublish = 1', "layers.hour.publish", "want true, 'json' or 'arrow'; change"),
    ('"1h"', '"1h"\npublish = ["json"]', "layers.hour.publish", "no form of a feed; got ['json']"),
    ('"1h"', '"1h"\npublish = {}', "layers.hour.publish", "got {}"),
    # sources
    ('"orders.raw"', '"orders raw"', "sources.orders.topic", "not a topic name that Kafka accepts"),
    ('"orders.raw"', '".."', "sources.orders.topic", "not a topic name that Kafka accepts"),
    ('"orders.raw"', f'"{"t" * 245}"', "sources.orders.topic", "its journal topic cannot be made"),
    ('"orders.raw"', '"shop.late"', "sources.orders.topic", "collides with 'shop.late'"),
    ('"orders.raw"', '"shop_dead"', "sources.orders.topic", "collides with 'shop.dead'"),
    ('"orders.raw"', '"shop.layer.hour"', "layers.hour", "collides with 'shop.layer.hour'"),
    ("partitions = 12", "partitions = 0", "sources.orders.partitions", "want 1 to 10000"),
    ("partitions = 12", "partitions = 1.5", "sources.orders.partitions", "wrong type; got 1.5"),
    ('"@timestamp"', "7", "sources.orders.time", "wrong type; got 7; want a text"),
    ('"@timestamp"', '"type"', "sources.orders.type", "'type' is the time field too"),
    ('id = "orderId"', 'id = ""', "sources.orders.id", "empty"),
    ('id = "orderId"', 'time_unit = "us"', "sources.orders.time_unit", "want 'ms' or 's'"),
    ('id = "orderId"', 'future_skew = "1 d"', "sources.orders.future_skew", "got '1 d'"),
    (
        'id = "orderId"', 'future_skew = "99999999d"',
        "sources.orders.future_skew", "want at most '36500d'",
    ),
    ('id = "orderId"', 'topics = "x"', "sources.orders.topics", "did you mean 'topic'?"),
    ('["store"]', '["stone"]', "sources.orders.keyed_by", "did you mean 'store'?"),
    ('["store"]', '["store", "store"]', "sources.orders.keyed_by", "listed twice: store"),
    ('vip = "bool"', 'vip = "boolean"', "sources.orders.fields.vip", "did you mean 'bool'?"),
    ('id = "orderId"', 'id = "vip"', "sources.orders.fields.vip", "the id field; got 'bool'"),
    ('id = "orderId"', 'id = "weight"', "sources.orders.fields.weight", "want 'string' or 'int'"),
    ('id = "orderId"', "ids_max = 5000", "sources.orders.ids_max", "the source has no id"),
    ('id = "orderId"', 'id = "o"\nids_max = 999', "sources.orders.ids_max", "want 1000 to"),
    ('vip = "bool"', "vip = 1", "sources.orders.fields.vip", "unknown type; got 1"),
    ('vip = "bool"', 'isVip = "bool"', "sources.orders.fields.isVip", "not a safe name"),
    ('vip = "bool"', 'time = "int"', "sources.orders.fields.time", "rename the field"),
    ('vip = "bool"', 'key_store = "int"', "sources.orders.fields.key_store", "rename the field"),
    ('vip = "bool"', 'type = "int"', "sources.orders.fields.type", "want 'string'"),
    # base layers
    ('source = "orders"', "", "layers.minute.source", "missing; want 'source' or 'from'"),
    ('source = "orders"', 'source = "order"', "layers.minute.source", "did you mean 'orders'?"),
    ('["order.*"]', "[]", "layers.minute.events", "want a list of at least one text"),
    ('["order.*"]', '["order.**.paid"]', "layers.minute.events", "not an event pattern"),
    ('["order.*"]', '["order..paid"]', "layers.minute.events", "not an event pattern"),
    ('["order.*"]', '["order.p*"]', "layers.minute.events", "not an event pattern"),
    ('["store", "country"]', "[]", "layers.minute.key", "want a list of at least one text"),
    ('["store", "country"]', '["store", "land"]', "layers.minute.key", "unknown field 'land'"),
    ('"1m"', '"week"', "layers.minute.window", "not a window; got 'week'"),
    ('"1m"', '"0s"', "layers.minute.window", "zero length"),
    ('"1m"', '"40000d"', "layers.minute.window", "too long"),
    ('"1m"', "60", "layers.minute.window", "wrong type; got 60; want a text"),
    (
        '"1m"', '"1m"\npartitions = 3',
        "layers.minute.partitions", "part of its key (store) has as many as its source; leave",
    ),
    ('"1m"', '"1m"\narchive_ttl = "1500ms"', "layers.minute.archive_ttl", "not in whole seconds"),
    ('"1m"', '"1m"\narchive_ttl = "7301d"', "layers.minute.archive_ttl", "want at most '7300d'"),
    ('"1m"', '"1m"\nslots = 0', "layers.minute.slots", "want 1 to 1024"),
    ('"1m"', '"1m"\nlateness = "1s"', "layers.minute.lateness", "did you mean 'allowed_lateness'?"),
    ('"count", ', '"counts", ', "layers.minute.measures", "unknown measure; got 'counts'"),
    ('"count", ', '"median(amount)", ', "layers.minute.measures", "unknown measure"),
    ('"count", ', '"sum(price)", ', "layers.minute.measures", "unknown field 'price'"),
    ('"count", ', '"sum(vip)", ', "layers.minute.measures", "wrong type; got bool"),
    ('"count", ', '"sum(store)", ', "layers.minute.measures", "'store' is a key field"),
    # filters
    *(
        ('"1m"', f'"1m"\nwhere = [{where}]', f"layers.minute.where[0]{place}", said)
        for where, place, said in [
            ('{field = "vipp", op = "==", value = true}', ".field", "did you mean 'vip'?"),
            ('{field = "vip", op = "=", value = true}', ".op", "unknown operator; got '='"),
            ('{field = "vip", op = "<", value = true}', ".op", "cannot order a bool"),
            ('{field = "vip", op = "==", value = 1}', ".value", "got 1; want bool"),
            ('{field = "amount", op = "==", value = 1.0}', ".value", "got 1.0; want int"),
            ('{field = "amount", op = "==", value = true}', ".value", "got True; want int"),
            ('{field = "amount", op = "<", value = 9223372036854775808}', ".value", "64 bits"),
            ('{field = "weight", op = ">", value = nan}', ".value", "compares with no number"),
            ('{field = "amount", op = "in", value = 1}', ".value", "want a list of at least one"),
            ('{field = "amount", op = "in", value = [1, "2"]}', ".value", "got '2'; want int"),
            ('{field = "amount", op = "=="}', ".value", "missing"),
            ('{field = "amount", op = "==", value = 1, x = 2}', ".x", "unknown field"),
            ("7", "", "wrong type; got 7"),
        ]
    ),
    # coarser layers
    (
        'from = "hour"', 'from = "hour"\nsource = "orders"',
        "layers.day.source", "leave one of them out",
    ),
    ('from = "minute"', 'from = "minutes"', "layers.hour.from", "did you mean 'minute'?"),
    ('from = "minute"', 'from = "day"', "layers.day.from", "day -> hour -> day"),
    ('from = "minute"', 'from = "hour"', "layers.hour.from", "hour -> hour"),
    ('from = "minute"', "from = 3", "layers.hour.from", "wrong type; got 3"),
    ('"1h"', '"90s"', "layers.hour.window", "want a multiple of 1m"),
    ('"1h"', '"7h"', "layers.day.window", "got 7h in 1d; want a multiple of 7h"),
    ('"day"', '"90m"', "layers.day.window", "got 1h in 90m; want a multiple of 1h"),
    ('"1h"', '"1h"\nevents = ["a"]', "layers.hour.events", "holds the events of its finer layer"),
    (
        '"1h"', '"1h"\nallowed_lateness = "0s"',
        "layers.hour.allowed_lateness", "follows the announcements of its finer layer",
    ),
    ('"1h"', '"1h"\npartitions = 0', "layers.hour.partitions", "want 1 to 10000"),
    (
        '"1h"', '"1h"\nmeasures = ["max(amount)"]',
        "layers.hour.measures", "add max(amount) to layers.minute.measures",
    ),
    (
        '"1h"', '"1h"\nmeasures = ["sum(price)"]',
        "layers.hour.measures", "cannot compute sum(price)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "where", "said"), REFUSED)
def test_what_cannot_be_used_is_refused_once_and_where_it_stands(
    old: str, new: str, where: str, said: str
) -> None:
    """One mistake is one problem: it names its place, the value got and the change to make."""
    (problem,) = problems_of(changed((old, new)))
    assert problem.startswith(f"{where}: ")
    assert said in problem
    assert ";" in problem


def test_all_problems_are_reported_at_once() -> None:
    """A bad source, a bad base layer and a bad coarser layer are all named in one error."""
    text = changed(
        ("revision = 3", "revision = -1"),
        ("partitions = 12", 'partitions = "12"'),
        ('window = "1m"', 'window = "1x"'),
        ('window = "1h"', 'window = "1h"\nslot = 3'),
        ('from = "hour"', 'from = "hours"'),
    )
    assert [problem.split(":")[0] for problem in problems_of(text)] == [
        "revision",
        "sources.orders.partitions",
        "layers.day.from",
        "layers.minute.window",
        "layers.hour.slot",
    ]


def test_the_error_names_the_map_and_lists_its_problems() -> None:
    """The message can be read without the code."""
    with pytest.raises(MapError) as caught:
        parse_map(changed(("revision = 3", "")), "shop.toml")
    assert str(caught.value) == (
        "cannot use map shop.toml: 1 problem(s)\n"
        "  - revision: missing; want a whole number of 1 to 2147483647; add it"
    )


def test_an_empty_text_misses_everything() -> None:
    """Nothing at all is four problems."""
    assert [problem.split(":")[0] for problem in problems_of("")] == [
        "revision",
        "name",
        "sources",
        "layers",
    ]


def test_sections_of_another_kind_are_refused() -> None:
    """Numbers stand instead of tables, and tables are empty."""
    text = 'revision = 1\nname = "x"\nsources = 3\n[layers]\n'
    assert problems_of(text) == [
        "sources: wrong type; got 3; want a table; change the value",
        "layers: empty; want at least one entry; declare one",
    ]
    text = 'revision = 1\nname = "x"\n[sources]\na = 1\n[layers]\nb = "2"\n'
    assert [problem.split(";")[0] for problem in problems_of(text)] == [
        "sources.a: wrong type",
        "layers.b: wrong type",
    ]


def test_a_key_that_is_no_part_of_the_finer_key_is_refused() -> None:
    """A field that a finer layer has summed over cannot be taken apart again."""
    text = BASE.replace('key = ["country"]\nwindow = "day"', 'key = ["store"]\nwindow = "day"')
    (problem,) = problems_of(text)
    assert problem.startswith("layers.day.key: not part of the key of hour: store")


@pytest.mark.parametrize(("inner", "outer"), [("7d", "month"), ("5h", "month"), ("month", "400d")])
def test_windows_that_do_not_nest_in_or_around_a_month_are_refused(inner: str, outer: str) -> None:
    """A week lies in two months."""
    (problem,) = problems_of(changed(('"1h"', f'"{inner}"'), ('"day"', f'"{outer}"')))
    assert problem.startswith("layers.day.window: ")


def test_a_circle_of_three_is_reported_once_and_not_at_what_hangs_from_it() -> None:
    """The circle names its members in order; a layer made from one of them is not part of it."""
    layer = '[layers.{}]\nfrom = "{}"\nkey = ["country"]\nwindow = "1h"\n'
    circle = "".join(layer.format(*pair) for pair in ("ab", "bc", "ca", "db"))
    (problem,) = problems_of(BASE + circle)
    assert problem.startswith("layers.a.from: the layers go in a circle: a -> b -> c -> a;")


def test_two_sources_of_one_topic_are_refused() -> None:
    """A topic has one journal, so it has one source; '.' and '_' are the same to Kafka."""
    other = BASE[BASE.index("[sources.orders]") : BASE.index("[layers.minute]")]
    for topic in ("orders.raw", "orders_raw"):
        again = other.replace("sources.orders", "sources.shops").replace("orders.raw", topic)
        (problem,) = problems_of(BASE + again)
        assert problem.startswith(f"sources.shops.topic: topic {topic!r} collides with")
        assert "of sources.orders.topic" in problem


def test_a_key_field_named_like_a_measure_is_refused() -> None:
    """An answer has key and measures beside each other."""
    text = BASE.replace("country", "count")
    problems = problems_of(text)
    assert [problem.split(": ")[0] for problem in problems] == ["layers.minute.key"]
    assert "'count' is the name of a measure of this layer too" in problems[0]


def test_a_float_is_no_key() -> None:
    """Equal floats are a matter of rounding, so a cell of one would not be one cell."""
    text = changed(('["store", "country"]', '["store", "weight"]'), (', "variance(weight)"]', "]"))
    problems = problems_of(text)
    assert [problem.split(": ")[0] for problem in problems] == ["layers.minute.key"]
    assert "cannot key by 'weight'" in problems[0]


def test_archive_tables_that_are_one_to_cassandra_are_refused() -> None:
    """Names that differ in capitals only, beside being no safe names."""
    text = BASE + '[layers.Hour]\nfrom = "minute"\nkey = ["country"]\nwindow = "1h"\n'
    assert [problem.split(";")[0] for problem in problems_of(text)] == [
        "layers.Hour: not a safe name",
        "layers.hour: has the same archive table as layers.Hour",
    ]


def test_an_archive_table_with_too_long_a_name_is_refused() -> None:
    """Cassandra takes 48 characters, of map and layer together."""
    long = "l" * 40
    assert read(('name = "shop"', 'name = "shopping"')).name == "shopping"
    layer = f'[layers.{long}]\nfrom = "minute"\nkey = ["country"]\nwindow = "1h"\n'
    assert parse_map(BASE.replace('"shop"', '"shopper"') + layer, "test").layer(long).name == long
    (problem,) = problems_of(BASE.replace('"shop"', '"shopping"') + layer)
    assert problem.startswith(f"layers.{long}: the name of its archive table is too long")


@pytest.mark.parametrize(
    "pattern", ["*", "**", "order", "order.*", "order.**", "*.paid", "a.*.b-c.**", "Order.V2_x"]
)
def test_patterns_of_every_form_are_taken(pattern: str) -> None:
    """One level, any one level, any depth at the end."""
    assert read(('["order.*"]', f'["{pattern}"]')).layer("minute").events == (pattern,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1\nb = = 2\n", "line 2, column 5: not TOML: "),
        ("a = 1\n\na = 2\n", "line 3, column "),
        ('a = "x', "line 1: not TOML: "),
        ("a = 1\nb = [1,\n", "line 3: not TOML: "),
        ("a = " + "9" * 5_000, "line 1: not TOML: "),
        ("a = " + "[" * 100_000, "file: not TOML: nested too deeply"),
    ],
)
def test_what_is_no_toml_is_refused_with_its_line(text: str, said: str) -> None:
    """A slip in the syntax is found by its line."""
    (problem,) = problems_of(text)
    assert problem.startswith(said)


def test_files_that_cannot_be_maps_are_refused(tmp_path: Path) -> None:
    """No file, a folder, other bytes than UTF-8, and far too many of them."""
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'revision = 1\nname = "caf\xe9"\n')
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (MAP_BYTES_MAX + 1))
    cases = {
        tmp_path / "none.toml": "file: cannot be read: No such file or directory",
        tmp_path: "file: cannot be read: Is a directory",
        latin: "line 2: not UTF-8",
        huge: f"file: more than {MAP_BYTES_MAX} bytes",
    }
    for path, said in cases.items():
        with pytest.raises(MapError, match=str(path)) as caught:
            load_map(path)
        assert caught.value.problems[0].startswith(said)


def test_a_file_with_a_byte_order_mark_and_other_line_ends_is_the_same_map(tmp_path: Path) -> None:
    """Editors on other systems write such files."""
    path = tmp_path / "map.toml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert load_map(path) == parse_map(BASE, "test")


def shuffled(table: dict[str, Any], seed: random.Random) -> dict[str, Any]:
    """Return the tables of a map in another order, through all levels."""
    names = list(table)
    seed.shuffle(names)
    inner = {name: table[name] for name in names}
    return {
        name: shuffled(value, seed) if isinstance(value, dict) else value
        for name, value in inner.items()
    }


def as_toml(table: dict[str, Any]) -> str:
    """Return a table as TOML on one line a field, with tables inline."""
    return "\n".join(f"{name} = {_inline(value)}" for name, value in table.items())


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_inline(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(one) for one in value) + "]"
    if isinstance(value, bool) or value is None:
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else f"'{value}'"


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
def test_equal_meanings_are_equal_maps_with_equal_digests(seed: random.Random) -> None:
    """Neither layout nor the order of sections and fields changes map or digest."""
    for text in (FLIGHTS.read_text(), BASE):
        other = as_toml(shuffled(tomllib.loads(text), seed))
        assert parse_map(other, "test") == parse_map(text, "test")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("revision = 3", "revision = 4"),
        ('name = "shop"', 'name = "shops"'),
        ("partitions = 12", "partitions = 13"),
        ('vip = "bool"', 'vip = "int"'),
        ('["order.*"]', '["order.**"]'),
        ('["store", "country"]', '["country", "store"]'),
        ('"1h"', '"2h"'),
        ('"1h"', '"1h"\nslots = 9'),
        ('"1h"', '"1h"\npublish = true'),
        ('"count", ', ""),
    ],
)
def test_another_meaning_is_another_digest(old: str, new: str) -> None:
    """Every change of the map changes its digest."""
    assert read((old, new)).digest != read().digest


def test_the_digest_is_kept_over_releases() -> None:
    """Journals hold digests: the same map must have the same one in every release."""
    themap = load_map(FLIGHTS)
    assert themap.digest == digest_of(themap) == "df26057864964b79"


@given(st.text(st.sampled_from("[]{}=.\"'\n abcsourelyfm01,-_"), max_size=200))
def test_any_text_is_a_map_or_a_map_error(text: str) -> None:
    """No text ends in another error than the one that lists problems."""
    assert problems_of(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from("ab.*1hd"), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["field", "op", "value", "a", "b"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.data())
def test_any_value_in_any_place_is_taken_or_noted(data: st.DataObject) -> None:
    """A field of the map set to anything, or taken out, is a map or a MapError, never a crash."""
    table = tomllib.loads(BASE)
    table["layers"]["minute"]["where"] = [{"field": "vip", "op": "==", "value": True}]
    place = table
    while True:
        name = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[name], dict) or data.draw(st.booleans()):
            break
        place = place[name]
    value = data.draw(VALUES)
    if value is None:
        del place[name]
    else:
        place[name] = value
    try:
        themap = parse_map(as_toml(table), "test")
    except MapError:
        return
    assert themap.digest == digest_of(themap)
