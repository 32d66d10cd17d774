"""Layers that are published: how the map says so, and its consequences."""

import pytest

from app.web.pages import describe_map
from tables.model.layer import combiner_of
from tests.support.map_text import changed, problems_of, read


@pytest.mark.parametrize(
    ("said", "form"),
    [("true", "json"), ('"json"', "json"), ('"arrow"', "arrow"), ("false", None)],
)
def test_a_layer_says_in_which_form_it_is_published(said: str, form: str | None) -> None:
    """True is JSON; the feed has a topic of the layer's partitions, and is not an input."""
    themap = read(('"1h"', f'"1h"\npublish = {said}\npartitions = 5'))
    hour = themap.layer("hour")
    assert (hour.publish, hour.partitions) == (form, 5)
    assert themap.feed_topic(hour) == "shop.feed.hour"
    assert "shop.feed.hour" not in themap.inputs()
    assert themap.layer("minute").publish is None


def test_a_map_that_publishes_nothing_keeps_its_digest() -> None:
    """Journals of maps from before there were feeds stay readable under the same revision."""
    assert read(('"1h"', '"1h"\npublish = false')).digest == read().digest
    true, json, arrow = (
        read(('"1h"', f'"1h"\npublish = {said}')).digest for said in ("true", '"json"', '"arrow"')
    )
    assert true == json
    assert len({read().digest, json, arrow}) == 3


def test_a_merged_layer_is_published_whole() -> None:
    """Its merge stage publishes, and never its combiner, whose cells are parts."""
    themap = read(('keyed_by = ["store"]', ""), ('"1m"', '"1m"\npublish = true'))
    minute = themap.layer("minute")
    assert (minute.merged, minute.publish) == (True, "json")
    assert combiner_of(themap.source("orders"), minute).publish is None


def test_a_topic_that_is_taken_for_a_feed_is_refused() -> None:
    """Kafka takes dots and underscores for the same."""
    text = changed(('"1h"', '"1h"\npublish = true'), ('"orders.raw"', '"shop_feed.hour"'))
    (problem,) = problems_of(text)
    assert problem.startswith(
        "layers.hour: topic 'shop.feed.hour' collides with 'shop_feed.hour' of sources.orders.topic"
    )


def test_the_map_over_http_says_what_is_published() -> None:
    """The map gives the form and the topic, null if there is none."""
    minute, hour, _ = describe_map(read(('"1h"', '"1h"\npublish = "arrow"')))["layers"]
    assert (minute["publish"], minute["feed_topic"]) == (None, None)
    assert (hour["publish"], hour["feed_topic"]) == ("arrow", "shop.feed.hour")
