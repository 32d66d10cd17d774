"""docs/client.md: every public name, argument and field of the library is on its page."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import msgspec
import pytest

import treasure_map
from tests import ROOT
from treasure_map.query_async import AsyncQueryClient

SECTIONS = dict(
    re.findall(
        r"^##+ ([\w.]+)\n(.*?)(?=^##|\Z)",
        (ROOT / "docs" / "client.md").read_text("utf-8"),
        re.DOTALL | re.MULTILINE,
    )
)
"""The text below each heading of one word, as far as the next heading."""

METHODS = {
    name: method
    for kind in (treasure_map.QueryClient, AsyncQueryClient)
    for name, method in inspect.getmembers(kind, inspect.isfunction)
    if not name.startswith("_")
}
CALLED: dict[str, Callable[..., object]] = {
    f"client.{name}": method for name, method in METHODS.items()
} | {
    "QueryClient": treasure_map.QueryClient,
    "Range": treasure_map.Range,
    "follow": treasure_map.follow,
}
STRUCTS = {
    name: kind
    for name in treasure_map.__all__
    if isinstance(kind := getattr(treasure_map, name), type) and issubclass(kind, msgspec.Struct)
}


def named(section: str) -> set[str]:
    """Return the words that a section has in code, those of a call's arguments among them."""
    texts = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", SECTIONS[section], flags=re.DOTALL))
    return {word for text in texts for word in re.findall(r"\w+", text)}


def test_every_public_name_has_a_section_and_no_other_has() -> None:
    """A name that is gone leaves the page too."""
    names = {*treasure_map.__all__, "AsyncQueryClient", *(f"client.{name}" for name in METHODS)}
    assert set(SECTIONS) - {"Times", "Types", "Errors"} == names


@pytest.mark.parametrize("name", CALLED)
def test_every_argument_is_described(name: str) -> None:
    """The call in the first line has them in their order, and what is optional after a star."""
    parameters = [
        one for one in inspect.signature(CALLED[name]).parameters.values() if one.name != "self"
    ]
    first = SECTIONS[name].split("`")[1]
    want = [
        f"**{one.name}" if one.kind is inspect.Parameter.VAR_KEYWORD else one.name
        for one in parameters
    ]
    named_only = [one.kind is inspect.Parameter.KEYWORD_ONLY for one in parameters]
    if any(named_only):
        want.insert(named_only.index(True), "*")
    given = re.split(r",\s+", first.partition("(")[2].removesuffix(")"))
    assert [one for one in given if one] == want
    rest = SECTIONS[name].replace(f"`{first}`", "", 1)
    assert {one.name for one in parameters} <= set(re.findall(r"`([^`\n]+)`", rest))


@pytest.mark.parametrize("name", STRUCTS)
def test_every_field_is_named(name: str) -> None:
    """Those of the type that it extends are on that one's section."""
    kind = STRUCTS[name]
    base = kind.__mro__[1]
    own = set(kind.__struct_fields__) - set(getattr(base, "__struct_fields__", ()))
    assert own
    assert own <= named(name)
    if base in STRUCTS.values():
        assert base.__name__ in named(name)


def test_the_attributes_of_errors_are_named() -> None:
    """A program decides by them."""
    assert set(vars(treasure_map.QueryFailedError("no"))) <= named("QueryFailedError")
    missing = treasure_map.MissingExtraError("cannot", "feed", ImportError())
    assert set(vars(missing)) <= named("MissingExtraError")
    assert set(treasure_map.Unreadable._fields) <= named("Unreadable")
