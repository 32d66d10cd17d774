"""The command ``verify``: its exit codes tell a difference from a fault of its own."""

from __future__ import annotations

from typing import NoReturn

import pytest
from click.testing import CliRunner

from app.commands import verify


def test_a_fault_of_verify_itself_does_not_say_that_rows_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A monitor that takes 1 for differing rows must not get it from a traceback."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise TypeError("nobody expected this \x1b[31m")

    monkeypatch.setattr(verify, "verify", fail)
    result = CliRunner().invoke(verify.command, ["--no-archive"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert "TypeError: nobody expected this" in result.stderr
    assert "\x1b" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: cannot verify: a fault in verify")
    assert "report the fault" in result.stderr


def test_help_and_bad_usage_keep_their_exit_codes() -> None:
    """Click's own ways to end are no faults."""
    assert CliRunner().invoke(verify.command, ["--help"]).exit_code == 0
    result = CliRunner().invoke(verify.command, ["--rows", "few"])
    assert (result.exit_code, "Traceback" in result.stderr) == (2, False)
