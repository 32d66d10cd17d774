"""Keys of events: the values at paths, as Kafka's own producers would write them."""

from __future__ import annotations

import json

import pytest

from app.kafka.batch_producer import partition_of
from app.load.event_keys import EventKeyError, keys_at, keys_of
from app.mapfile.load import load_map
from tests.support import github_events


def key_of(event: object, *paths: str) -> bytes | None:
    """Return the key of one event."""
    keys = keys_at(paths)
    assert keys is not None
    (key,) = keys.of([json.dumps(event).encode()])
    return key


@pytest.mark.parametrize(
    ("value", "key"),
    [("x|y", b"x|y"), (7, b"7"), (2**70, b"%d" % 2**70), (True, b"true"), (1.5, b"1.5"),
     ("é", "é".encode()), ("", b""), ([1], b"[1]"), (None, None)],
)  # fmt: skip
def test_a_text_is_its_own_key_and_other_values_are_json(value: object, key: bytes | None) -> None:
    """A null is no key."""
    assert key_of({"repo": {"id": value}}, "repo.id") == key


def test_values_at_several_paths_are_joined_in_their_order() -> None:
    """As the load generator does it."""
    event = {"a": {"b": "x"}, "list": [{"id": 5}]}
    assert key_of(event, "list[0].id", "a.b") == b"5|x"
    assert key_of({"a.b": 1}, '"a.b"') == b"1"


@pytest.mark.parametrize("event", [{}, {"a": None}, {"a": 7}, {"a": {"b": None}}, 7, [], None])
def test_an_event_without_the_value_has_no_key(event: object) -> None:
    """Nor has one that is no object; none of them is an error."""
    assert key_of(event, "a.b") is None


@pytest.mark.parametrize("text", [b"", b"{", b'{"a":{"b":1}', b"[" * 100_000, b'{"a":"\xff"}'])
def test_broken_events_have_no_key(text: bytes) -> None:
    """They are written as they are: the worker counts them."""
    keys = keys_at(["a.b"])
    assert keys is not None
    assert keys.of([b'{"a":{"b":1}}', text]) == [b"1", None]


def test_paths_that_make_no_key_are_refused() -> None:
    """With the path that is at fault."""
    with pytest.raises(EventKeyError, match=r"a\.b and a: they are the same value, or one"):
        keys_at(["a.b", "a"])
    with pytest.raises(EventKeyError, match=r"cannot use --key: got 'a\.\.b'"):
        keys_at(["a..b"])
    assert keys_at([]) is None


def test_a_source_says_the_paths_of_its_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its events then go to the partition of their key; without a promise they have none."""
    file = tmp_path_factory.mktemp("map") / "map.toml"
    file.write_text(github_events.MAP)
    source = load_map(file).source("github")
    keys = keys_of(source)
    assert keys is not None
    event = github_events.lines(github_events.events(1)).strip()
    assert keys.of([event]) == [b"owner/repo-0"]
    assert partition_of(b"owner/repo-0", 3) in range(3)
    file.write_text(github_events.MAP.replace('keyed_by = ["repo"]', ""))
    assert keys_of(load_map(file).source("github")) is None
