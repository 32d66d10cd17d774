"""Findings of the host and of security, with their levels and remedies."""

from __future__ import annotations

import resource
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from app.config.archives import archive_of
from app.config.settings import Settings, load_settings
from app.doctor import host
from app.doctor.posture import posture
from app.host.findings import Finding, of_problem

MIB = 1 << 20


def settings(folder: Path, **flags: Any) -> Settings:
    """Return settings with folders that do not exist yet."""
    folders = {"state_folder": folder / "a" / "state", "archive_folder": folder / "archive"}
    return load_settings(folders | flags, {})


@pytest.mark.parametrize(
    ("free", "level"), [(99, "fail"), (100, "warn"), (399, "warn"), (400, "ok"), (9_999, "ok")]
)
def test_a_disk_has_room_for_several_times_the_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    """Below the mark sources pause; the disk is that of the nearest folder that exists."""
    asked = []

    def usage(folder: Path) -> Any:
        asked.append(folder)
        return shutil._ntuple_diskusage(1, 1, free * MIB)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    found = list(host.disks(settings(tmp_path, disk_free_bytes_min=100 * MIB)))
    assert [one.level for one in found] == [level, level]
    assert asked == [tmp_path, tmp_path]
    assert all(("make room on it" in one.text) is (level != "ok") for one in found)


def test_a_folder_below_a_file_is_a_finding(tmp_path: Path) -> None:
    """The examination goes on; a worker could make no such folder."""
    file = tmp_path / "file"
    file.write_text("a person's")
    for folder in (file, file / "below"):
        given = settings(tmp_path, state_folder=folder, archive_folder=folder)
        subject = f"disk of {folder}"
        fault = Finding("fail", subject, f"{file} is not a folder; set another one")
        assert list(host.disks(given)) == [fault, fault]
        (found,) = archive_of(given).examine(given, None)
        assert (found.level, found.subject) == ("fail", "archive")
        assert found.text == (
            f"cannot read {folder}: Not a directory; set archive_folder to another folder"
        )


@pytest.mark.parametrize(("hard", "level"), [(256, "warn"), (1 << 20, "ok"), (-1, "ok")])
def test_a_small_limit_of_open_files_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard: int, level: str
) -> None:
    """Connections of readers are files."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, hard))
    (found,) = host.files(settings(tmp_path))
    assert found.level == level
    assert ("LimitNOFILE" in found.text) is (level == "warn")


def test_the_packages_of_this_environment_are_as_tested(tmp_path: Path) -> None:
    """The tests run on the pinned ones."""
    (found,) = host.packages(settings(tmp_path, archive="cassandra"))
    assert found.level == "ok"


@pytest.mark.parametrize(
    ("package", "level", "text"),
    [
        (("polars", None), "fail", 'missing; want >=1.30; run: pip install "treasure-map[worker]"'),
        (
            ("polars", "0.20.31"),
            "fail",
            'got 0.20.31; want >=1.30; run: pip install "treasure-map[',
        ),
        (("polars", "1.100"), "ok", ""),
        (("aiokafka", "0.15.0"), "warn", "got 0.15.0; want ==0.14.0; run: pip install"),
        (("cassandra-driver", "3.29"), "warn", 'run: pip install "treasure-map[cassandra]"'),
    ],
)
def test_packages_of_other_versions_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: tuple[str, str | None],
    level: str,
    text: str,
) -> None:
    """A pin that is not kept is a warning; a package that is missing or too old fails."""
    known = metadata.version
    name, version = package

    def installed(asked: str) -> str:
        if asked != name:
            return known(asked)
        if version is None:
            raise metadata.PackageNotFoundError(asked)
        return version

    monkeypatch.setattr(metadata, "version", installed)
    (found,) = host.packages(settings(tmp_path, archive="cassandra"))
    assert found.level == level
    assert found.subject == ("packages" if level == "ok" else f"package {name}")
    assert text in found.text


def test_connections_beyond_this_machine_are_told(tmp_path: Path) -> None:
    """Those that only ``insecure`` allows, each with the settings that close it."""
    assert [one.level for one in posture(settings(tmp_path))] == ["ok"]
    exposed = {"web_host": "0.0.0.0", "brokers": "kafka.example:9092"}  # noqa: S104 - not bound
    found = list(posture(settings(tmp_path, insecure=True, **exposed)))
    assert {one.level for one in found} == {"warn"}
    assert [one.subject for one in found] == ["web_host", "brokers"]
    assert "set kafka_tls or kafka_ca_file" in found[1].text


def test_files_of_secrets_that_others_may_read_are_told(tmp_path: Path) -> None:
    """With the command that closes them."""
    file = tmp_path / "secret"
    file.write_text("a-secret-of-many-letters\n")
    file.chmod(0o644)
    given = settings(tmp_path, web_token_file=str(file))
    (finding,) = [one for one in posture(given) if one.subject == "secrets"]
    assert finding.level == "warn"
    assert finding.text.endswith(f"run: chmod go-rwx {file}")
    file.chmod(0o600)
    (finding,) = [one for one in posture(given) if one.subject == "secrets"]
    assert finding.level == "ok"


def test_a_problem_has_its_subject_before_the_colon() -> None:
    """One without is told as it is."""
    assert of_problem("fail", "topic a: b: c; d") == Finding("fail", "topic a", "b: c; d")
    assert of_problem("warn", "no words") == Finding("warn", "problem", "no words")
