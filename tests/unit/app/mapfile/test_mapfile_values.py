"""Values as they come, in a map: the options of fields, of the time and of records."""

from __future__ import annotations

import pytest

from app.mapfile.compare import compare
from tables.model.layer import Field
from tests.support.map_text import changed, problems_of, read

TIME = ('time = "@timestamp"', 'time = {path = "at", OPTIONS}')


def time(options: str) -> tuple[str, str]:
    """Return the change of BASE that gives its time options."""
    old, new = TIME
    return old, new.replace("OPTIONS", options)


def test_fields_say_which_other_values_they_take() -> None:
    """Each by an option of its own."""
    source = read(
        ('amount = "int"', 'amount = {type = "int", text = true, whole = true}'),
        ('weight = "float"', 'weight = {type = "float", text = true, on_error = "null"}'),
        ('country = "string"', 'country = {type = "string", digits = true, path = "c"}'),
        ('vip = "bool"', 'vip = {type = "bool", text = true, required = true}'),
    ).sources[0]
    assert source.fields == (
        Field("amount", "int", text=True, whole=True),
        Field("country", "string", ("c",), digits=True),
        Field("store", "int"),
        Field("vip", "bool", required=True, text=True),
        Field("weight", "float", text=True, null_on_error=True),
    )
    assert source.nullable == (source.field("weight"),)


def test_the_time_and_the_records_have_options_too() -> None:
    """They stand in the time's table, and in the source."""
    source = read(
        time('text = true, fraction = true, zone = "UTC"'),
        ("partitions = 12", 'partitions = 12\narrays = true\ncompression = "gzip"'),
    ).sources[0]
    assert (source.time_text, source.time_fraction, source.time_offset) == (True, True, "Z")
    assert (source.arrays, source.compression) == (True, "gzip")
    assert read(time('zone = "-03:30"')).sources[0].time_offset == "-03:30"


def test_options_that_say_nothing_new_leave_the_digest_as_it_is() -> None:
    """Journals of earlier releases hold it."""
    same = read(
        ("partitions = 12", 'partitions = 12\narrays = false\ncompression = "none"'),
        ('amount = "int"', 'amount = {type = "int", text = false, on_error = "event"}'),
    )
    assert same.digest == read().digest == "c9d515e94a846b50"


@pytest.mark.parametrize(
    "change",
    [
        ('amount = "int"', 'amount = {type = "int", text = true}'),
        ('amount = "int"', 'amount = {type = "int", whole = true}'),
        ('amount = "int"', 'amount = {type = "int", on_error = "null"}'),
        ('country = "string"', 'country = {type = "string", digits = true}'),
        ("partitions = 12", "partitions = 12\narrays = true"),
        ("partitions = 12", 'partitions = 12\ncompression = "gzip"'),
        *(
            ('"@timestamp"', f"{{path = '\"@timestamp\"', {option}}}")
            for option in ("text = true", "fraction = true", 'zone = "UTC"', 'zone = "+00:00"')
        ),
    ],
)
def test_every_option_is_part_of_the_meaning(change: tuple[str, str]) -> None:
    """Another digest, so that no worker takes one map for the other."""
    assert read(change).digest != read().digest


REFUSED = [
    (('vip = "bool"', 'vip = {type = "string", text = true}'), "fields.vip.text",
     "got type 'string'; want 'int' or 'float' or 'bool'; a string is a text already"),
    (('vip = "bool"', 'vip = {type = "float", whole = true}'), "fields.vip.whole", "want 'int'"),
    (('vip = "bool"', 'vip = {type = "int", digits = true}'), "fields.vip.digits", "want 'string'"),
    (('vip = "bool"', 'vip = {type = "bool", text = 1}'), "fields.vip.text", "want true or false"),
    (('vip = "bool"', 'vip = {type = "bool", on_error = "skip"}'), "fields.vip.on_error",
     "got 'skip'; want 'event' or 'null'"),
    (('vip = "bool"', 'vip = {type = "bool", on_error = "null", required = true}'),
     "fields.vip.on_error", "a required value cannot become null"),
    (('vip = "bool"', 'vip = {type = "bool", texts = true}'), "fields.vip.texts", "mean 'text'?"),
    (('vip = "bool"', 'order = {path = "orderId", type = "int", text = true}'), "fields.order",
     "an id is a text or a whole number"),
    (('vip = "bool"', 'kind = {path = "type", type = "string", digits = true}'), "fields.kind",
     "the type is a text"),
    (('vip = "bool"', 'ts = {path = \'"@timestamp"\', type = "int", text = true}'), "fields.ts",
     "write those of the time into its table"),
    (time('zone = "Europe/Berlin"'), "time.zone", "got 'Europe/Berlin'; want 'UTC' or an offset"),
    (time('zone = "+1:00"'), "time.zone", "want 'UTC' or an offset such as '+01:00'"),
    (time('zone = "+24:00"'), "time.zone", "not a zone of one offset"),
    (time('unit = "s"'), "time.unit", 'the source\'s: time_unit = "s"'),
    (time("fractions = true"), "time.fractions", "did you mean 'fraction'?"),
    (("partitions = 12", 'partitions = 12\ncompression = "zstd"'), "compression",
     "got 'zstd'; want 'none' or 'gzip'"),
    (("partitions = 12", "partitions = 12\narrays = 1"), "arrays", "want true or false"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "where", "said"), REFUSED)
def test_an_option_that_means_nothing_is_refused_where_it_stands(
    change: tuple[str, str], where: str, said: str
) -> None:
    """One mistake is one problem, with its remedy."""
    (problem,) = problems_of(changed(change))
    assert problem.startswith(f"sources.orders.{where}: "), problem
    assert said in problem


def test_map_diff_tells_options_with_their_meaning() -> None:
    """Each holds for later events only."""
    found = compare(
        read(),
        read(
            ("revision = 3", "revision = 4"),
            time('text = true, zone = "UTC"'),
            ("partitions = 12", 'partitions = 12\narrays = true\ncompression = "gzip"'),
            ('amount = "int"', 'amount = {type = "int", text = true, on_error = "null"}'),
        ),
    )
    assert found.refused == []
    assert [line.partition(": holds for events that are read")[0] for line in found.parts[
        "source orders"
    ]] == [
        "~ time: @timestamp -> at", "~ time.text: no -> yes", "~ time.zone: none -> UTC",
        "~ arrays: no -> yes", "~ compression: none -> gzip",
        "~ field amount: int -> int, text, null on error",
    ]  # fmt: skip
