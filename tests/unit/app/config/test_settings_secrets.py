"""Secrets in files of their own, and warnings if others on the machine may read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from app.commands.map import command
from app.config.fields import is_secret, trait
from app.config.settings import FIELDS, load_settings
from app.demo.flights.events import MAP_FILE as FLIGHTS
from app.trust.secret_files import readable_secrets
from tables.model.errors import SettingError

SECRET = "correct-horse-battery"  # noqa: S105 - no password of anything
SECRETS = [name for name, field in FIELDS.items() if is_secret(field)]
# The settings without which a secret means nothing.
BESIDE = {
    "kafka_password": {"kafka_username": "u", "kafka_sasl_mechanism": "PLAIN"},
    "cassandra_password": {"cassandra_username": "u"},
    "schema_registry_password": {"schema_registry_username": "u"},
}


def private(path: Path, content: bytes) -> Path:
    """Return a file that only this user may read."""
    path.write_bytes(content)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_is_read_from_a_file_of_its_own(tmp_path: Path, name: str, end: str) -> None:
    """The line end is not part of it; environment, settings file or flag names the file."""
    file = private(tmp_path / "secret", f"{SECRET}{end}".encode())
    beside = BESIDE.get(name, {})
    of_file = f"{name}_file"
    variables = {f"TREASURE_MAP_{of_file.upper()}": str(file)}
    named = private(tmp_path / "settings.toml", f'{of_file} = "{file}"'.encode())
    for settings in (
        load_settings(beside, variables),
        load_settings(beside, {}, named),
        load_settings({**beside, of_file: str(file)}, {}),
    ):
        assert getattr(settings, name) == SECRET
        assert SECRET not in repr(settings)


@pytest.mark.parametrize("name", SECRETS)
def test_both_forms_of_a_secret_are_refused(tmp_path: Path, name: str) -> None:
    """Nobody could tell which counts; neither is shown."""
    file = private(tmp_path / "secret", b"another-secret-of-all")
    with pytest.raises(SettingError) as raised:
        load_settings(
            {**BESIDE.get(name, {}), f"{name}_file": str(file)},
            {f"TREASURE_MAP_{name.upper()}": SECRET},
        )
    message = str(raised.value)
    assert "1 problem(s)" in message
    assert f"{name}_file (flag --" in message
    assert f"{name} (environment TREASURE_MAP_{name.upper()}) too; want one of them" in message
    assert SECRET not in message
    assert "another-secret" not in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot read it: No such file or directory"),
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"\xff" * 20, "it is not UTF-8"),
        (b"x" * 70_000, "it is longer than 65536 bytes"),
    ],
)
def test_a_file_without_a_secret_is_told_once(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    """Rules about its content do not report it again."""
    file = tmp_path / "secret"
    if content is not None:
        private(file, content)
    with pytest.raises(SettingError) as raised:
        load_settings({"kafka_password_file": str(file), **BESIDE["kafka_password"]}, {})
    assert "1 problem(s)" in str(raised.value)
    assert f"kafka_password_file (flag --kafka-password-file): got {file}; {told}" in str(
        raised.value
    )


@pytest.mark.parametrize("given", [SECRET, "cGFzcw/d29yZA==", "x" * 5_000])
@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_was_given_for_its_file_is_not_shown(name: str, given: str) -> None:
    """Nothing of that name is there, nor a folder for it; a path that is wrong is shown."""
    for value, is_shown in ((given, False), ("/nowhere/secret", True)):
        with pytest.raises(SettingError, match="cannot read it") as raised:
            load_settings({**BESIDE.get(name, {}), f"{name}_file": value}, {})
        assert (value in str(raised.value)) is is_shown


def test_a_secret_of_a_bad_form_is_not_shown(tmp_path: Path) -> None:
    """The refusal names the fault all the same."""
    file = private(tmp_path / "secret", b"swordfish")
    with pytest.raises(SettingError) as raised:
        load_settings({"web_token_file": str(file)}, {})
    assert "want at least 16 printable ASCII characters" in str(raised.value)
    assert "swordfish" not in str(raised.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_files_that_others_may_read_are_warned_of(tmp_path: Path, mode: int) -> None:
    """The warning has the command that mends it; settings without a secret may be read."""
    secret = private(tmp_path / "secret", SECRET.encode())
    plain = private(tmp_path / "plain.toml", b"web_port = 6067")
    with_secret = private(tmp_path / "secret.toml", f'peer_secret = "{SECRET}"'.encode())
    key = private(tmp_path / "key.pem", b"")
    flags = {"web_token_file": str(secret), "web_cert_file": "c", "web_key_file": str(key)}
    for settings in (plain, with_secret):
        assert readable_secrets(load_settings(flags, {}, settings).secret_files) == []
    for file in (secret, plain, with_secret, key):
        file.chmod(mode)
    warnings = readable_secrets(load_settings(flags, {}, plain).secret_files)
    warnings += readable_secrets(load_settings({}, {}, with_secret).secret_files)
    assert [line.split()[0] for line in warnings] == [str(secret), str(key), str(with_secret)]
    for line, file in zip(warnings, (secret, key, with_secret), strict=True):
        assert line.endswith(f"(mode {mode:03o}); run: chmod go-rwx {file}")
    assert SECRET not in "".join(warnings)


def test_a_command_without_a_log_says_that_its_warning_is_one(tmp_path: Path) -> None:
    """It goes to standard error, and nothing else does."""
    secret = private(tmp_path / "secret", SECRET.encode())
    secret.chmod(0o644)
    done = CliRunner().invoke(
        command, ["acl", str(FLIGHTS), "--user", "u"],
        env={"TREASURE_MAP_PEER_SECRET_FILE": str(secret)}, catch_exceptions=False,
    )  # fmt: skip
    assert done.stderr.startswith(f"warning: {secret} holds secrets and others on this machine")
    assert done.stderr.count("\n") == 1


def test_files_of_secrets_keys_and_tokens_are_private() -> None:
    """They are warned of; maps, certificates and authorities are for everybody."""
    private_files = {name for name, field in FIELDS.items() if trait(field, "private")}
    assert private_files == {
        *(f"{name}_file" for name in SECRETS),
        "web_tokens_file",
        *(f"{of}_key_file" for of in ("kafka", "cassandra", "web")),
        *(f"{of}_key_password_file" for of in ("kafka", "cassandra", "web")),
    }


def test_a_mounted_secret_needs_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not own the file reads it by its group; other rights are warned of."""
    secret = private(tmp_path / "secret", SECRET.encode())
    monkeypatch.setattr("os.geteuid", lambda: secret.stat().st_uid + 1)
    secret.chmod(0o440)
    settings = load_settings({"peer_secret_file": str(secret)}, {})
    assert settings.peer_secret == SECRET
    assert readable_secrets(settings.secret_files) == []
    secret.chmod(0o444)
    (warning,) = readable_secrets(settings.secret_files)
    assert f"run: chmod o-rwx {secret}" in warning
