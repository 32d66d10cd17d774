"""Paths in a map: their text, what they become, and every way in which they are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.model.layer import Field
from tables.model.path import STEPS_MAX, Path, parse_path, path_text
from tests.support.map_text import BASE, changed, problems_of, read

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
STEPS = st.lists(st.one_of(NAMES, st.integers(0, 9_999)), max_size=STEPS_MAX - 1)


@given(NAMES, STEPS)
def test_every_path_has_a_text(first: str, steps: list[str | int]) -> None:
    """Names in any letters, with dots, quotes, brackets and spaces too."""
    path = (first, *steps)
    assert parse_path(path_text(path)) == path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("deviceId", ("deviceId",)),
        ("payload.device.id", ("payload", "device", "id")),
        ("readings[0].w", ("readings", 0, "w")),
        ("grid[1][2]", ("grid", 1, 2)),
        ('labels."device.id"', ("labels", "device.id")),
        (r'"a\"b\u00e9"', ('a"bé',)),
        ("größe.@x-y/z", ("größe", "@x-y/z")),
        ('""', ("",)),
    ],
)
def test_a_text_is_a_path(text: str, path: Path) -> None:
    """The forms that the page of maps shows."""
    assert parse_path(text) == path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (".a", "character 1"), ("a.", "character 2"), ("a..b", "character 2"),
        ("[0]", "character 4"), ("a[-1]", "character 2"), ("a[x]", "character 2"),
        ("a.[0]", "character 2"), ("a b", "character 2"), ('"a', "character 1"),
        ("$.a[*]", "character 4"), ('"\\q"', "not a JSON text"), ("a[10000]", "indexes to 9999"),
        ("a" + ".a" * STEPS_MAX, "at most 16 steps"),
    ],
)  # fmt: skip
def test_another_text_is_refused_where_it_stops_to_be_a_path(text: str, said: str) -> None:
    """The message shows the text."""
    with pytest.raises(ValueError, match=said) as caught:
        parse_path(text)
    assert repr(text) in str(caught.value)


def test_fields_time_type_and_id_may_lie_deep() -> None:
    """What stands at the top level under its own name is as without a path, in the digest too."""
    source = read(
        ('"@timestamp"', '{path = "meta.ts"}'),
        ('type = "type"', 'type = {path = "kind"}'),
        ('id = "orderId"', 'id = {path = "ids[0]"}'),
        ('vip = "bool"', 'vip = {path = "who.isVip", type = "bool", required = true}'),
        ('amount = "int"', 'amount = {path = "amount", type = "int"}'),
    ).sources[0]
    assert (source.time_at, source.type_at, source.id_at) == (("meta", "ts"), ("kind",), ("ids", 0))
    assert source.field("vip") == Field("vip", "bool", ("who", "isVip"), required=True)
    assert source.field("amount") == Field("amount", "int")
    plain = (
        ('"@timestamp"', '{path = "\\"@timestamp\\""}'),
        ('amount = "int"', 'amount = {type = "int"}'),
    )
    assert read(*plain).digest == read().digest
    assert read(('vip = "bool"', 'vip = {path = "v", type = "bool"}')).digest != read().digest


def test_the_digest_of_a_map_without_paths_is_the_one_that_it_always_was() -> None:
    """Journals and archives of earlier releases hold it."""
    assert read().digest == "c9d515e94a846b50"


REFUSED = [
    ('"@timestamp"', '{path = "meta."}', "sources.orders.time.path", "not a path; got 'meta.'"),
    ('"@timestamp"', "{}", "sources.orders.time.path", "missing; want a text"),
    ('"@timestamp"', '{path = "a", unit = "s"}', "sources.orders.time.unit", "time_unit"),
    ('"@timestamp"', '{path = "a", zone = 1}', "sources.orders.time.zone", "wrong type; got 1"),
    ('"@timestamp"', '{path = "type"}', "sources.orders.type", "'type' is the time field too"),
    ('vip = "bool"', 'vip = {path = "v"}', "sources.orders.fields.vip.type", "missing"),
    ('vip = "bool"', 'vip = {type = "boolean"}', "sources.orders.fields.vip", "mean 'bool'"),
    ('vip = "bool"', 'vip = {type = "bool", required = 1}', "sources.orders.fields.vip.required",
     "want true or false"),
    ('vip = "bool"', 'vip = {type = "bool", paths = "a"}', "sources.orders.fields.vip.paths",
     "did you mean 'path'?"),
    ('vip = "bool"', 'vip = {type = "int", path = "amount"}', "sources.orders.fields.vip",
     "reads 'amount' as fields.amount does"),
    ('vip = "bool"', 'vip = {type = "bool", path = "amount.x"}', "sources.orders.fields.vip",
     "goes into 'amount', which fields.amount reads as a value"),
    ('vip = "bool"', 'vip = {type = "bool", path = "type.x"}', "sources.orders.fields.vip",
     "goes into 'type', which type reads as a value"),
    ('vip = "bool"', 'vip = {type = "bool", path = "orderId"}', "sources.orders.fields.vip",
     "the id field; got 'bool'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "where", "said"), REFUSED)
def test_a_path_that_cannot_be_used_is_refused_where_it_stands(
    old: str, new: str, where: str, said: str
) -> None:
    """One mistake is one problem."""
    (problem,) = problems_of(changed((old, new)))
    assert problem.startswith(f"{where}: "), problem
    assert said in problem


def test_a_field_with_a_reserved_name_gets_another_one_by_its_path() -> None:
    """The message says how; the map with it is good."""
    (problem,) = problems_of(BASE.replace('vip = "bool"', 'time = "int"'))
    assert "event_time = {path = 'time'" in problem
    source = read(('vip = "bool"', "event_time = {path = 'time', type = \"int\"}")).sources[0]
    assert source.field("event_time").at == ("time",)
