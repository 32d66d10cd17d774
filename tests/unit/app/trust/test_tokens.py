"""Tokens: made, listed and revoked by the command, kept as hashes in a file of the user's own."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import app.__main__ as program
from app.trust.tokens import Tokens, hash_of, lifetime_of, make_token, read_tokens, revoke_token
from tables.model.errors import SettingError


def run(file: Path, *arguments: str) -> Result:
    """Run the command with a file of tokens."""
    return CliRunner().invoke(
        program.group, ["token", *arguments], env={"TREASURE_MAP_WEB_TOKENS_FILE": str(file)}
    )


def test_a_token_is_shown_once_and_kept_as_a_hash(tmp_path: Path) -> None:
    """Only this user may read its file, whatever the umask is."""
    file = tmp_path / "tokens.json"
    made = run(file, "new", "grafana", "--scope", "read", "--scope", "live")
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    assert token.startswith("tm_")
    assert len(token) == 46
    text = file.read_text()
    assert token not in text
    assert token.removeprefix("tm_") not in text
    assert hashlib.sha256(token.encode()).hexdigest() in text
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]
    listed = run(file, "list")
    assert all(word in listed.stdout for word in ("grafana", "read live", "never"))
    assert token not in listed.output
    assert json.loads(text)["tokens"][0]["sha256"] not in listed.output
    revoked = run(file, "revoke", "grafana")
    assert (revoked.exit_code, token in revoked.output) == (0, False)
    assert read_tokens(file) == ()


def test_a_token_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends after the duration that it was made with; the list says so."""
    file = tmp_path / "tokens.json"
    token = run(file, "new", "brief", "--scope", "read", "--expires", "90d").stdout.strip()
    tokens = Tokens(str(file))
    tokens.load()
    assert tokens.find(hash_of(token)) is not None
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=91)
    monkeypatch.setattr("app.trust.tokens.now", lambda: later)
    assert tokens.find(hash_of(token)) is None
    monkeypatch.setattr("app.commands.token.now", lambda: later)
    assert "(expired)" in run(file, "list").stdout


@pytest.mark.parametrize("text", ["", "90", "d", "0d", "-1d", "1.5h", "90 d", "1y", "9999999d"])
def test_a_lifetime_is_a_number_and_a_unit(text: str) -> None:
    """Anything else is refused before a token is made."""
    with pytest.raises(ValueError, match="want a number with m, h, d or w, such as 90d"):
        lifetime_of(text)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("new", "a b", "--scope", "read"), "cannot make a token: got the name 'a b'"),
        (("new", "", "--scope", "read"), "cannot make a token: got the name ''"),
        (("new", "there", "--scope", "read"), "has one of this name"),
        (("revoke", "nobody"), "cannot revoke token nobody: "),
    ],
)
def test_what_cannot_be_made_or_revoked_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    """The refusal changes nothing."""
    file = tmp_path / "tokens.json"
    make_token(file, "there", ["admin"])
    before = file.read_bytes()
    done = run(file, *arguments)
    assert isinstance(done.exception, SettingError)
    assert told in str(done.exception)
    assert file.read_bytes() == before


def test_the_command_wants_a_file_and_a_scope(tmp_path: Path) -> None:
    """It says which setting names the file, and which scopes there are."""
    done = CliRunner().invoke(program.group, ["token", "list"])
    assert "web_tokens_file is not set" in str(done.exception)
    done = run(tmp_path / "t", "new", "a", "--scope", "write")
    assert "'read', 'live', 'admin'" in done.output


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "Input data was truncated"),
        (b"\xff", "invalid"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"format": 2, "tokens": []}', "its format is 2, not 1"),
        (b'{"tokens": [{"name": "a"}]}', "missing required field"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_is_none_of_tokens_is_told(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    """The error has its name and the command that makes one."""
    file = tmp_path / "tokens.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingError, match="cannot use web_tokens_file: ") as raised:
        read_tokens(file)
    assert told.lower() in str(raised.value).lower()
    assert f"got {file}; want" in str(raised.value)


def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    """Its target is replaced, as if a folder of secrets is mounted."""
    target, link = tmp_path / "data" / "tokens.json", tmp_path / "tokens.json"
    target.parent.mkdir()
    make_token(target, "a", ["read"])
    link.symlink_to(target)
    make_token(link, "b", ["read"])
    assert link.is_symlink()
    assert [token.name for token in read_tokens(target)] == ["a", "b"]


def test_commands_beside_each_other_lose_no_token(tmp_path: Path) -> None:
    """Each reads the tokens that the one before has written."""
    file = tmp_path / "tokens.json"
    make_token(file, "first", ["read"])

    def work(number: int) -> None:
        make_token(file, f"t{number}", ["read"])
        if number % 2:
            revoke_token(file, f"t{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {token.name for token in read_tokens(file)}
    assert names == {"first", *(f"t{number}" for number in range(0, 16, 2))}


def test_a_token_for_longer_than_there_are_years_is_refused(tmp_path: Path) -> None:
    """The error is in words, and no file is made."""
    with pytest.raises(SettingError, match=r"^cannot make token a: it would expire after the year"):
        make_token(tmp_path / "tokens.json", "a", ["read"], lifetime_of("999999w"))
    assert not list(tmp_path.iterdir())
