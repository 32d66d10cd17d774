"""The library that other people's programs import: its exports and its types."""

from __future__ import annotations

import types
from importlib import metadata, resources

import pytest

import treasure_map
from tests.support.deploy_support import project
from treasure_map import version


def test_all_that_is_public_is_exported() -> None:
    """The list is in order, with nothing by accident: names are kept from version to version."""
    public = {
        name
        for name, member in vars(treasure_map).items()
        if not name.startswith("_") and not isinstance(member, types.ModuleType)
    }
    assert treasure_map.__all__ == sorted(public)


@pytest.mark.parametrize("name", treasure_map.__all__)
def test_what_is_exported_says_what_it_is(name: str) -> None:
    """It is of the library itself, and has a docstring of its own."""
    member = getattr(treasure_map, name)
    assert member.__module__.startswith("treasure_map.")
    assert member.__name__ == name
    inherited = [base.__doc__ for base in getattr(member, "__mro__", ())[1:]]
    assert member.__doc__
    assert member.__doc__ not in inherited


def test_the_library_has_its_version() -> None:
    """The one of the project; other names are refused as of any module."""
    assert treasure_map.__version__ == project()["project"]["version"]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = treasure_map.nothing


def test_an_installed_worker_knows_its_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the source tree, read from the metadata of the distribution instead."""
    declared = project()["project"]["optional-dependencies"]
    assert version.requirements("worker") == declared["worker"]
    monkeypatch.setattr(version, "_project", lambda: None)
    of_all = [f'{one}; extra == "{extra}"' for extra, every in declared.items() for one in every]
    monkeypatch.setattr(metadata, "requires", lambda name: {version.DISTRIBUTION: of_all}[name])
    for extra, every in declared.items():
        found = [one.partition(";")[0] for one in version.requirements(extra)]
        assert found == [one.partition(";")[0] for one in every]
    assert version.requirements("nothing") == []


def test_the_library_says_that_it_is_typed() -> None:
    """Checkers of types read it only if it holds this file, which PEP 561 names."""
    assert resources.files(treasure_map).joinpath("py.typed").is_file()
