"""The list of kinds of archives: a setting chooses an added kind by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.config import archives
from app.config.fields import meaning
from app.config.settings import FIELDS, Settings, load_settings
from app.runtime.wiring import build
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.errors import SettingError
from tests.support.memory_archive import MemoryKind
from tests.support.worker_process import MAP

FAULT = (("archive", "archive_folder"), "archive: got memory; want more of it")


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[[MemoryKind], MemoryKind]:
    """Return a function that adds a kind to the list of them."""

    def added(kind: MemoryKind) -> MemoryKind:
        monkeypatch.setattr(archives, "ARCHIVES", (*archives.ARCHIVES, kind))
        return kind

    return added


def test_a_setting_names_one_of_the_kinds(add: Callable[[MemoryKind], MemoryKind]) -> None:
    """A setting may name any kind that is in the list at the time of asking."""
    with pytest.raises(SettingError, match="got 'memory'; want one of embedded, cassandra"):
        load_settings({"archive": "memory"}, {})
    add(MemoryKind())
    assert load_settings({"archive": "memory"}, {}).archive == "memory"
    with pytest.raises(SettingError, match="want one of embedded, cassandra, memory"):
        load_settings({"archive": "tape"}, {})
    with pytest.raises(SettingError, match="'tape'; want one of embedded, cassandra, memory; set"):
        archives.archive_of(Settings(archive="tape"))


def test_the_operating_page_names_every_kind() -> None:
    """A value that may be set is one that the setting's meaning tells of."""
    text = meaning(FIELDS["archive"])
    assert [name for name in archives.names() if f"`{name}`" not in text] == []


@pytest.mark.parametrize("serves_many", [True, False])
def test_a_kind_says_whether_workers_share_it(
    add: Callable[[MemoryKind], MemoryKind], serves_many: bool
) -> None:
    """Then a group may have several, which need a secret to know each other by."""
    add(MemoryKind(serves_many=serves_many))
    chosen = Settings(archive="memory")
    others = "cassandra or memory" if serves_many else "cassandra"
    alone = f"its archive is memory and serves one worker only; set archive to {others} for more"
    assert archives.why_alone(chosen).startswith("" if serves_many else alone)
    assert bool(archives.why_alone(chosen)) is not serves_many
    assert f"set archive to {others} for more" in archives.why_alone(Settings())
    given = {"archive": "memory", "web_tokens_file": "tokens.toml"}
    if serves_many:
        with pytest.raises(SettingError, match="want peer_secret too"):
            load_settings(given, {})
    else:
        assert load_settings(given, {}).web_tokens_file == "tokens.toml"


def test_a_kind_checks_its_own_settings_unless_all_is_trusted(
    add: Callable[[MemoryKind], MemoryKind],
) -> None:
    """Its faults stand among the others; the settings of other kinds are not checked."""
    add(MemoryKind(faults=(FAULT,)))
    with pytest.raises(SettingError, match="archive: got memory; want more of it"):
        load_settings({"archive": "memory"}, {})
    assert load_settings({"archive": "memory", "insecure": True}, {}).insecure
    assert load_settings({}, {}).archive == "embedded"


def test_a_worker_is_built_with_the_kind_that_is_chosen(
    add: Callable[[MemoryKind], MemoryKind], tmp_path: Path
) -> None:
    """It fills the folders whose disk the worker watches; without it the worker is another."""
    kind = add(MemoryKind())
    map_file = tmp_path / "map.toml"
    map_file.write_text(MAP.format(name="kinds"))
    given = {
        "map_file": str(map_file), "state_folder": str(tmp_path / "state"),
        "archive_folder": str(tmp_path / "archive"),
    }  # fmt: skip
    chosen = load_settings({"archive": "memory", **given}, {})
    assert archives.archive_of(chosen) is kind
    assert archives.archive_of(chosen).folders(chosen) == [tmp_path / "state"]
    embedded = load_settings(given, {})
    assert archives.archive_of(embedded).folders(embedded) == [tmp_path / "archive"]
    assert isinstance(archives.archive_of(embedded).make(embedded), EmbeddedArchive)
    build(chosen)
    with pytest.raises(SettingError, match="cannot use archive: got 'tape'"):
        build(Settings(archive="tape", map_file=map_file, state_folder=tmp_path / "other"))
