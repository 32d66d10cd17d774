"""Layers whose key the source is not keyed by: read as merged, with a topic of their own."""

import pytest

from tests.support.map_text import changed, problems_of, read


@pytest.mark.parametrize(
    "change",
    [
        ('["store", "country"]', '["country"]'),
        ('keyed_by = ["store"]', ""),
        ('keyed_by = ["store"]', "keyed_by = []"),
        ('keyed_by = ["store"]', 'keyed_by = ["store", "vip"]'),
    ],
)
def test_a_layer_whose_key_the_source_is_not_keyed_by_is_merged(change: tuple[str, str]) -> None:
    """Its cells are complete after a merge stage, which has a topic of its own."""
    themap = read(change)
    minute = themap.layer("minute")
    assert (minute.merged, minute.source, minute.events) == (True, "orders", ("order.*",))
    assert minute.partitions == 8
    assert themap.input_topic(minute) == "shop.layer.minute"
    assert themap.inputs() == {
        "orders.raw": 12, "shop.layer.minute": 8, "shop.layer.hour": 8, "shop.layer.day": 8,
    }  # fmt: skip
    assert themap.digest != read().digest


def test_a_merged_layer_may_say_how_many_partitions_its_topic_has() -> None:
    """Layers made from it take over their number, as of any finer layer."""
    themap = read(('"1m"', '"1m"\npartitions = 3'), ('keyed_by = ["store"]', ""))
    assert [layer.partitions for layer in themap.layers] == [3, 3, 3]
    few = read(("partitions = 12", "partitions = 2"), ('keyed_by = ["store"]', ""))
    assert few.layer("minute").partitions == 2


def test_a_layer_keyed_like_its_source_is_complete_in_each_partition() -> None:
    """All of the source's fields are in the key, so that it needs neither topic nor merging."""
    themap = read()
    assert not any(layer.merged for layer in themap.layers)
    assert "shop.layer.minute" not in themap.inputs()


def test_the_topic_of_a_merged_layer_stands_beside_no_other_of_its_name() -> None:
    """Its name is taken, as that of a coarser layer is."""
    problems = problems_of(
        changed(('keyed_by = ["store"]', ""), ('"orders.raw"', '"shop.layer.minute"'))
    )
    assert [problem.split(":")[0] for problem in problems] == ["layers.minute"]
    assert "collides with 'shop.layer.minute'" in problems[0]


@pytest.mark.parametrize(
    ("partitions", "said"),
    [("0", "out of range; got 0; want 1 to 10000"), ('"3"', "wrong type; got '3'")],
)
def test_a_merged_layer_is_refused_partitions_that_no_topic_can_have(
    partitions: str, said: str
) -> None:
    """The limits are those of all topics."""
    (problem,) = problems_of(
        changed(('"1m"', f'"1m"\npartitions = {partitions}'), ('keyed_by = ["store"]', ""))
    )
    assert problem.startswith(f"layers.minute.partitions: {said}")


def test_what_a_source_is_keyed_by_must_be_known_before_partitions_are_judged() -> None:
    """One slip of the keyboard is one problem."""
    (problem,) = problems_of(
        changed(('"1m"', '"1m"\npartitions = 3'), ('keyed_by = ["store"]', 'keyed_by = ["stor"]'))
    )
    assert problem.startswith("sources.orders.keyed_by: ")
