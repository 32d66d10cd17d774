"""Settings come from four places, and every bad one is named at once."""

from __future__ import annotations

import functools
import pathlib
import re
import socket
from typing import Annotated

import click
import pytest
from click.testing import CliRunner

from app.commands.produce import command as produce
from app.commands.token import command as tokens
from app.commands.worker import command as worker
from app.config.fields import PrivateFile, Secret, flag, is_secret, meaning, means
from app.config.loopback import is_loopback
from app.config.options import COMMON, settings_options
from app.config.page import settings_table, with_table
from app.config.settings import (
    FIELDS,
    Settings,
    environment_variable,
    load_settings,
    secrets_of,
)
from app.host.printable import MASK
from tables.model.errors import SettingError
from tests import ROOT

TOKEN = "correct-horse-battery"  # noqa: S105 - no password of anything
ANYWHERE = "0.0.0.0"  # noqa: S104 - nothing is bound here


def test_node_and_group_follow_from_host_port_and_map_where_they_are_not_set() -> None:
    """Two workers of one host, or of two maps, stand beside each other without any setting."""
    one, two = load_settings({}, {}), load_settings({"web_port": 7001}, {})
    assert one.node_name == f"{socket.gethostname()}-6066"
    assert two.node_name == f"{socket.gethostname()}-7001"
    assert one.group_of("shop") == "treasure-map.shop"
    named = load_settings({"node": "n", "group": "treasure-map"}, {})
    assert (named.node_name, named.group_of("shop")) == ("n", "treasure-map")


def problems_of(
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    file: pathlib.Path | None = None,
) -> str:
    """Return the message of settings that must be refused."""
    with pytest.raises(SettingError) as caught:
        load_settings(flags, environ or {}, file)
    return str(caught.value)


def written(tmp_path: pathlib.Path, text: str) -> pathlib.Path:
    """Return a settings file that holds ``text``."""
    path = tmp_path / "settings.toml"
    path.write_text(text, "utf-8")
    return path


def test_defaults_work_without_any_setting() -> None:
    """Nothing given is the local, embedded worker."""
    settings = load_settings({}, {})
    assert settings == Settings()
    assert (settings.brokers, settings.archive, settings.web_port) == (
        "127.0.0.1:9092",
        "embedded",
        6066,
    )


def test_a_later_place_overrides_an_earlier_one(tmp_path: pathlib.Path) -> None:
    """Default < file < environment < flag, one field settled at each place."""
    file = written(tmp_path, 'group = "file"\nweb_port = 1001\nsession_timeout_ms = 2001')
    environ = {"TREASURE_MAP_WEB_PORT": "1002", "TREASURE_MAP_SESSION_TIMEOUT_MS": "2002"}
    settings = load_settings({"session_timeout_ms": "2003", "group": None}, environ, file)
    assert settings.group == "file"
    assert settings.web_port == 1002
    assert settings.session_timeout_ms == 2003
    assert settings.fetch_max_wait_ms == 50


def test_the_environment_names_the_file_and_the_flag_overrides_it(tmp_path: pathlib.Path) -> None:
    """TREASURE_MAP_SETTINGS is read only if no file is given."""
    named = written(tmp_path, "web_port = 1001")
    other = tmp_path / "other.toml"
    other.write_text("web_port = 1002", "utf-8")
    environ = {"TREASURE_MAP_SETTINGS": str(named)}
    assert load_settings({}, environ).web_port == 1001
    assert load_settings({}, environ, other).web_port == 1002


def test_every_bad_field_is_reported_at_once_with_its_place(tmp_path: pathlib.Path) -> None:
    """One message names bad fields of file, environment and flags."""
    file = written(tmp_path, 'web_port = "6066"\narchive = "tape"\nquery_limit_max = 0')
    text = problems_of(
        {"brokers": "no port"},
        {"TREASURE_MAP_INSECURE": "maybe", "TREASURE_MAP_NODE": "n" * 201},
        file,
    )
    assert "6 problem(s)" in text
    for line in (
        f"web_port (file {file}): got '6066'; want `int`",
        f"archive (file {file}): got 'tape'; want one of embedded, cassandra",
        f"query_limit_max (file {file}): got 0; want `int` >= 1",
        "insecure (environment TREASURE_MAP_INSECURE): got 'maybe'; want true or false",
        f"node (environment TREASURE_MAP_NODE): got '{'n' * 201}'; want `str` of length <= 200",
        "brokers (flag --brokers): got 'no port'; want host:port, more separated by commas",
    ):
        assert f"  - {line}\n" in f"{text}\n"


def test_unknown_names_are_refused_with_the_nearest_one(tmp_path: pathlib.Path) -> None:
    """A misspelt field or variable is an error, never a default in silence."""
    file = written(tmp_path, "wbe_port = 1\nzzzz = 1")
    text = problems_of({}, {"TREASURE_MAP_FETCH_BYTS_MAX": "1", "HOME": "/"}, file)
    assert "did you mean web_port?" in text
    assert "did you mean TREASURE_MAP_FETCH_BYTES_MAX?" in text
    assert "zzzz" in text
    assert "docs/OPERATING.md lists all of them" in text
    assert "3 problem(s)" in text


@pytest.mark.parametrize("content", [b"web_port = ", b"\xff\xfe", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path: pathlib.Path, content: bytes | None) -> None:
    """Bad TOML, bad UTF-8 and a missing file are setting errors."""
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)
    assert f"file {path}: cannot read it" in problems_of({}, {}, path)


def test_secrets_are_shown_nowhere() -> None:
    """Neither repr nor the message that refuses them shows them."""
    environ = {
        "TREASURE_MAP_WEB_TOKEN": TOKEN,
        "TREASURE_MAP_KAFKA_PASSWORD": "hunter2",
        "TREASURE_MAP_KAFKA_USERNAME": "u",
        "TREASURE_MAP_KAFKA_SASL_MECHANISM": "PLAIN",
    }
    settings = load_settings({}, environ)
    assert settings.web_token == TOKEN
    shown = f"{settings!r} {settings} {settings.__rich_repr__()}"
    assert TOKEN not in shown
    assert "hunter2" not in shown
    assert "web_token='********'" in shown
    refused = problems_of({}, {"TREASURE_MAP_WEB_TOKEN": "swordfish"})
    assert "web_token" in refused
    assert "swordfish" not in refused
    assert {name for name, field in FIELDS.items() if is_secret(field)} == {
        "web_token",
        "kafka_password",
        "cassandra_password",
        "peer_secret",
        "schema_registry_password",
    }


@pytest.mark.parametrize(
    "given",
    [
        {"brokers": "user:p@55/word@broker:9092"},
        {"brokers": "SASL_SSL://user:p@55/word@broker:9092"},
        {"web_url": "https://user:p@55/word@worker"},
        {"archive": "cassandra", "cassandra_hosts": "user:p@55/word@node"},
    ],
)
def test_a_password_before_a_host_is_not_shown(given: dict[str, object]) -> None:
    """Somebody may take a URL for a host, or a login for a part of it."""
    text = problems_of(given, {}, None)
    assert "word" not in text
    assert f"{MASK}@" in text


def test_a_secret_of_the_wrong_type_is_not_shown(tmp_path: pathlib.Path) -> None:
    """A number instead of a password is masked in the refusal."""
    text = problems_of({}, {}, written(tmp_path, "kafka_password = 998877"))
    assert "kafka_password" in text
    assert "998877" not in text


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"web_host": ANYWHERE}, "web_host"),
        ({"web_host": "::"}, "web_host"),
        ({"web_host": ANYWHERE, "web_token": TOKEN}, "web_cert_file"),
        ({"web_host": ANYWHERE, "web_cert_file": "c", "web_key_file": "k"}, "web_token"),
        ({"brokers": "127.0.0.1:9092,kafka.example:9092"}, "brokers"),
        ({"archive": "cassandra", "cassandra_hosts": "10.0.0.1"}, "cassandra_hosts"),
    ],
)
def test_what_is_beyond_loopback_must_be_guarded(flags: dict[str, object], field: str) -> None:
    """A bind, a broker or Cassandra beyond loopback is refused, unless insecure is set."""
    assert field in problems_of(flags)
    assert load_settings(flags | {"insecure": True}, {}).insecure


@pytest.mark.parametrize(
    "url",
    ["worker-1:6066", "ftp://a", "https://", "http://u:p@a:1", "https://a/?x=1", "http://a b"],
)
def test_where_other_workers_find_one_is_a_url(url: str) -> None:
    """They would ask any host that it names."""
    assert "web_url" in problems_of({"web_url": url})


def test_where_other_workers_find_one_that_speaks_tls_is_https() -> None:
    """They would send their token in clear, and get no answer."""
    tls = {"web_cert_file": "c", "web_key_file": "k"}
    assert "want https://" in problems_of({"web_url": "http://worker-1:6066", **tls})
    for url in ("https://worker-1:6066", "https://[::1]:6066/base", ""):
        assert load_settings({"web_url": url, **tls}, {}).web_url == url


def test_a_guarded_worker_beyond_loopback_is_accepted() -> None:
    """Token and TLS open the bind; TLS opens brokers and Cassandra."""
    settings = load_settings(
        {
            "web_host": ANYWHERE,
            "web_token": TOKEN,
            "web_cert_file": "c",
            "web_key_file": "k",
            "brokers": "kafka.example:9092",
            "kafka_tls": True,
            "archive": "cassandra",
            "cassandra_hosts": "a.example, b.example",
            "cassandra_ca_file": "ca",
        },
        {},
    )
    assert settings.kafka_uses_tls
    assert settings.cassandra_uses_tls
    assert settings.cassandra_hosts == ("a.example", "b.example")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        (ANYWHERE, False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("", False),
    ],
)
def test_loopback_is_told_by_name_or_address(host: str, loopback: bool) -> None:
    """Only names that no resolver can turn elsewhere count."""
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"web_cert_file": "c"}, "web_cert_file: got a value, without web_key_file"),
        ({"kafka_username": "u", "kafka_sasl_mechanism": "PLAIN"}, "without kafka_password"),
        ({"query_cells_max": 10}, "query_limit_max: got 10000; want at most query_cells_max, 10"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(flags: dict[str, object], text: str) -> None:
    """Halves of pairs, and limits above the limit they stand under."""
    assert text in problems_of(flags)


def test_a_file_of_tokens_stands_for_a_token(tmp_path: pathlib.Path) -> None:
    """It does so beyond loopback; a group of several workers wants a peer secret too."""
    given: dict[str, object] = {
        "web_host": ANYWHERE, "web_cert_file": "c", "web_key_file": "k",
        "web_tokens_file": str(tmp_path / "tokens.json"),
    }  # fmt: skip
    assert load_settings(given, {}).web_tokens_file
    several = given | {"archive": "cassandra"}
    assert "web_tokens_file: got " in problems_of(several)
    assert "want peer_secret too" in problems_of(several)
    for secret in ("peer_secret", "web_token"):
        assert load_settings(several | {secret: TOKEN}, {})


def test_a_bad_field_is_not_reported_again_by_a_rule_over_its_default() -> None:
    """Rules between fields are left out if a field of theirs could not be read."""
    text = problems_of({"web_host": ANYWHERE, "web_token": "short"})
    assert "1 problem(s)" in text


def test_a_command_gets_settings_from_flags(tmp_path: pathlib.Path) -> None:
    """The decorator adds --settings and a flag for every field but the secrets."""
    seen: list[Settings] = []

    @click.command()
    @click.option("--own", default="x")
    @settings_options
    def command(own: str, settings: Settings) -> None:
        assert own == "y"
        seen.append(settings)

    file = written(tmp_path, "insecure = true\nquery_limit_max = 7")
    arguments = ["--settings", str(file), "--map", "m.toml", "--no-insecure", "--own", "y"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert seen[0].map_file == pathlib.Path("m.toml")
    assert seen[0].insecure is False
    assert seen[0].query_limit_max == 7
    options = {name for parameter in command.params for name in parameter.opts}
    assert set(map(flag, FIELDS.values())) - {None} <= options
    secrets = {f"--{name.replace('_', '-')}" for name in FIELDS if is_secret(FIELDS[name])}
    assert not secrets & options


class TidalSettings(Settings, frozen=True, kw_only=True):
    """The settings with three more, each at its one place."""

    tide_height_max: Annotated[
        int, means("Highest tide in `map_file`.", ge=0, le=20, wanted="a height in metres")
    ] = 3
    tide_password: Annotated[Secret, means("Password of the harbour.")] = ""
    tide_password_file: Annotated[PrivateFile, means("File that holds `tide_password`.")] = ""


def test_a_setting_is_added_at_one_place(tmp_path: pathlib.Path) -> None:
    """Its field alone brings it to the page, the flags, the environment, the file and refusals."""
    table = settings_table(TidalSettings)
    assert table.startswith(settings_table())
    assert table.removeprefix(settings_table()).splitlines() == [
        "",
        "| `tide_height_max` | `3` | `--tide-height-max` | Highest tide in `map_file`. |",
        "| `tide_password` |  | none: a secret | Password of the harbour. |",
        "| `tide_password_file` |  | `--tide-password-file` | File that holds `tide_password`. |",
    ]
    environ = {"TREASURE_MAP_TIDE_HEIGHT_MAX": "4", "TREASURE_MAP_TIDE_PASSWORD": "hunter2"}
    settings = load_settings({}, environ, kind=TidalSettings)
    assert isinstance(settings, TidalSettings)
    assert (settings.tide_height_max, settings.tide_password) == (4, "hunter2")
    assert secrets_of(settings)[-1] == "hunter2"
    assert "tide_height_max=4, tide_password='********'" in repr(settings)
    file = written(tmp_path, "tide_height_max = 5")
    assert getattr(load_settings({}, {}, file, TidalSettings), "tide_height_max") == 5  # noqa: B009
    text = "tide_height_max (environment TREASURE_MAP_TIDE_HEIGHT_MAX): got '21'; want a height in"
    with pytest.raises(SettingError, match=re.escape(text)):
        load_settings({}, {"TREASURE_MAP_TIDE_HEIGHT_MAX": "21"}, kind=TidalSettings)
    with pytest.raises(SettingError, match="did you mean TREASURE_MAP_TIDE_PASSWORD"):
        load_settings({}, {"TREASURE_MAP_TIDE_PASWORD": "x"}, kind=TidalSettings)

    @click.command()
    @functools.partial(settings_options, kind=TidalSettings)
    def command(settings: TidalSettings) -> None:
        click.echo(f"{settings.tide_height_max} {settings.tide_password}")

    secret = tmp_path / "secret"
    secret.write_text("high\n", "utf-8")
    secret.chmod(0o600)
    arguments = ["--tide-height-max", "6", "--tide-password-file", str(secret)]
    assert CliRunner().invoke(command, arguments, catch_exceptions=False).output == "6 high\n"
    shown = " ".join(CliRunner().invoke(command, ["--help-settings"]).output.split())
    assert "Highest tide in map_file. [TREASURE_MAP_TIDE_HEIGHT_MAX]" in shown


def test_the_help_of_a_worker_is_short_and_names_the_list_of_all_settings() -> None:
    """The list has each flag once, under the heading of its group."""
    shown = CliRunner().invoke(worker, ["--help"]).output
    assert len(shown.splitlines()) < 40
    assert "--help-settings" in shown
    assert re.findall(r"^  (--[a-z-]+) VALUE", shown, re.MULTILINE) == [
        flag(FIELDS[name]) for name in FIELDS if name in COMMON
    ]
    listed = CliRunner().invoke(worker, ["--help-settings"])
    assert listed.exit_code == 0
    found = re.findall(r"^  (--[a-z-]+) ", listed.output, re.MULTILINE)
    assert sorted(found) == sorted(filter(None, map(flag, FIELDS.values())))
    assert re.findall(r"^(\w[\w ]+):$", listed.output, re.MULTILINE) == [
        "Worker", "Kafka", "Cassandra", "Query endpoint", "Queries",
    ]  # fmt: skip
    heading = listed.output.index("Query endpoint:")
    assert listed.output.index("--cassandra-port") < heading < listed.output.index("--web-port")


def test_the_few_settings_of_a_command_stand_in_its_help() -> None:
    """A list of one would be one more step."""
    shown = CliRunner().invoke(tokens, ["list", "--help"]).output
    assert "--web-tokens-file VALUE" in shown
    assert "--help-settings" not in shown
    listed = CliRunner().invoke(produce, ["--help-settings"]).output
    assert "--kafka-username VALUE" in listed
    assert "--web-port" not in listed


def test_a_setting_without_a_text_is_refused() -> None:
    """The page would have an empty row; the message says how a field is written."""

    class SilentSettings(Settings, frozen=True, kw_only=True):
        silent: bool = False

    with pytest.raises(ValueError, match=r"cannot describe setting silent: .*; want one; write it"):
        settings_table(SilentSettings)
    assert all(meaning(field).endswith(".") for field in FIELDS.values())


def test_every_setting_has_its_variable() -> None:
    """The text form of every default is accepted from the environment and gives the default."""
    environ = {}
    for name, field in FIELDS.items():
        value = field.default
        environ[environment_variable(name)] = (
            ",".join(value) if isinstance(value, tuple) else str(value)
        )
    assert load_settings({}, environ) == Settings()


def test_the_operating_page_holds_the_table_of_today() -> None:
    """docs/OPERATING.md is as ``python -m app.config.page docs/OPERATING.md`` writes it."""
    path = ROOT / "docs" / "OPERATING.md"
    page = path.read_text("utf-8")
    assert with_table(page) == page, "run: python -m app.config.page docs/OPERATING.md"
    assert settings_table() in page
