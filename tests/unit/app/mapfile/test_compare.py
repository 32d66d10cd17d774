"""Two maps compared: each change in words, and whether workers would take it."""

from __future__ import annotations

import pytest

from app.mapfile.compare import WHOLE, compare
from app.mapfile.load import parse_map
from tests.support.map_text import changed, read

HIGHER = ("revision = 3", "revision = 4")
MEASURES = 'measures = ["count", "mean(amount)", "variance(weight)"]'


def lines(*changes: tuple[str, str]) -> dict[str, list[str]]:
    """Return the lines of a change of BASE that may be applied, by part."""
    found = compare(read(), read(HIGHER, *changes))
    assert found.refused == []
    return found.parts


def refusals(*changes: tuple[str, str]) -> list[str]:
    """Return the refusals of a change of BASE under a higher revision."""
    return compare(read(), read(HIGHER, *changes)).refused


def test_equal_maps_are_equal_whatever_their_layout() -> None:
    """Comments and the order of sections mean nothing."""
    other = parse_map("# a comment\n" + changed(), "test")
    found = compare(read(), other)
    assert (found.is_equal, found.parts, found.refused) == (True, {}, [])


def test_a_change_wants_a_higher_revision() -> None:
    """Claims of the same revision and another digest do not stand, nor do lower ones."""
    change = ('window = "1m"', 'window = "1m"\nallowed_lateness = "1h"')
    [refused] = compare(read(), read(change)).refused
    assert refused.startswith("the map in use is revision 3; got 3; want 4 or more")
    [refused] = compare(read(), read(("revision = 3", "revision = 2"))).refused
    assert "got 2; want 4 or more" in refused
    assert lines() == {"map": ["~ nothing but the revision differs: state and rows stay"]}


def test_a_map_of_another_name_is_another_one() -> None:
    """Nothing of the old one would go on."""
    [refused] = refusals(('name = "shop"', 'name = "kiosk"'))
    assert "map kiosk is another one" in refused


def test_changes_of_a_source_are_told_with_their_meaning() -> None:
    """Each holds for later events only."""
    found = lines(
        ('time = "@timestamp"', 'time = {path = "meta.at"}\nfuture_skew = "1h"'),
        ('weight = "float"', 'weight = "float"\nnote = "string"'),
        ('vip = "bool"\n', ""),
        ('id = "orderId"\n', ""),
    )["source orders"]
    assert [line.partition(":")[0] for line in found] == [
        "~ time", "~ id", "~ future_skew", "- field vip is read no more", "+ field note (string)",
    ]  # fmt: skip
    assert found[0].startswith("~ time: @timestamp -> meta.at: holds for events that are read")
    assert found[1].startswith("~ id: orderId -> none: ids are remembered")
    assert found[2].startswith("~ future_skew: 10m -> 1h")


def test_layers_come_and_go_with_their_topics_and_tables() -> None:
    """What is left stays as it is, and a new layer begins with the change."""
    found = lines(("[layers.day]", "[layers.week]"), ('window = "day"', 'window = "7d"'))
    assert found["layer week"][0].startswith(f"+ begins: {WHOLE}")
    assert found["layer day"][0].startswith("- ends: its cells leave the state")
    assert found["topics"] == [
        "+ shop.layer.week (8 partitions): made by `map apply` if it is missing",
        "+ shop.journal.shop.layer.week (8 partitions): made by `map apply` if it is missing",
        "- shop.layer.day: stays, with its records; nothing is added any more",
        "- shop.journal.shop.layer.day: stays, with its records; nothing is added any more",
    ]
    assert found["tables"] == [
        "- shop_day: stays, with its rows",
        "+ shop_week: made by `map apply`",
    ]


def test_a_layer_of_a_new_source_has_all_its_events() -> None:
    """The topic is read from its first record on."""
    source = (
        '[sources.visits]\ntopic = "visits.raw"\npartitions = 2\ntime = "at"\ntype = "type"\n'
        '[sources.visits.fields]\nwho = "string"\n'
        '[layers.visits]\nsource = "visits"\nevents = ["**"]\nkey = ["who"]\nwindow = "1h"\n'
        'measures = ["count"]\n\n[layers.minute]'
    )
    found = lines(("[layers.minute]", source))
    assert found["source visits"] == ["+ begins: visits.raw is read from the first record it has"]
    assert found["layer visits"][0].startswith("+ begins: it has all events of its new source")


def test_measures_begin_with_the_change_unless_their_columns_are_there() -> None:
    """A sum is stored for each mean; a maximum is not."""
    found = lines((MEASURES, 'measures = ["count", "mean(amount)", "sum(amount)", "max(amount)"]'))
    assert found["layer minute"] == [
        "+ measure sum(amount): of columns that cells have, as whole as they are",
        f"+ measure max(amount): null in earlier windows, {WHOLE}",
        (
            "- measure variance(weight): left out of answers; rows keep it; if it comes back it"
            " begins anew"
        ),
    ]
    assert "~ shop_minute: gets max_amount; null in the rows that it has" in found["tables"]


def test_lateness_lifetimes_and_feeds_may_change() -> None:
    """Sealed windows stay sealed, and a feed that begins has a topic."""
    more = 'window = "1m"\nmax_out_of_orderness = "5s"\narchive_ttl = "90d"\npublish = "arrow"'
    found = lines(('window = "1m"', more))
    assert [line.partition(": ")[2].partition(":")[0] for line in found["layer minute"]] == [
        "0s -> 5s", "0s -> 90d", "of the cells that close from the change on",
    ]  # fmt: skip
    assert found["topics"][0].startswith("+ shop.feed.minute (")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('window = "1h"', 'window = "30m"'), "the window of layer hour was 1h, now 30m"),
        (('amount = "int"', 'amount = "float"'), "the type of amount of layer minute was int"),
        (('keyed_by = ["store"]', "keyed_by = []"), "the keyed_by of layer minute was"),
        (("partitions = 12", "partitions = 13"), "orders.raw had 12 partitions, now 13"),
        (("partitions = 12", "partitions = 13"), "shop.late and shop.dead have as many partitions"),
        (('window = "day"', 'window = "day"\nslots = 9'), "the slots of layer day were 8, now 9"),
        (('topic = "orders.raw"', 'topic = "more.raw"'), "the input of layer minute was source"),
    ],
)
def test_changes_that_make_another_layer_are_refused(change: tuple[str, str], says: str) -> None:
    """Workers would be refused, before anything has moved."""
    assert any(says in refused for refused in refusals(change))
