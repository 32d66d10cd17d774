"""Text that others wrote is shown so that it cannot steer a terminal."""

from __future__ import annotations

import errno
import io
import json
import logging
import unicodedata
from pathlib import Path
from urllib.parse import quote, quote_plus

import click
import pytest
from aiokafka.protocol.admin import SaslAuthenticateRequest_v0
from click.testing import CliRunner

import app.__main__ as program
from app.commands import verify
from app.commands.query_tables import cells_table, shown
from app.config.fields import is_secret
from app.config.settings import FIELDS, load_settings, secrets_of
from app.demo.display import ledger_lines
from app.host.printable import MASK, printable, printable_json, protect_log
from app.verify.report import Difference, LayerReport, Report
from tables.model.errors import TreasureMapError
from treasure_map import Cell

STEERING = "a\x1b[2J\x07\x9b31m\u202e\ud800\n\u00e9\U0001f600"
ESCAPED = r"a\x1b[2J\x07\x9b31m\u202e\ud800\n\u00e9\U0001f600".replace(
    r"\u00e9\U0001f600", "\u00e9\U0001f600"
)


def test_all_that_does_not_print_is_escaped() -> None:
    """Every control character, mark of direction and half of a pair; nothing else."""
    assert printable(STEERING) == ESCAPED
    assert printable("x\ny\x1b", keep="\n") == "x\ny\\x1b"
    for code in range(0x11000):
        one = printable(chr(code))
        assert one.isprintable()
        if unicodedata.category(chr(code))[0] in "LNPS":
            assert one == chr(code)


def test_json_says_the_same_to_every_reader() -> None:
    """Only characters that would steer a terminal are written in another way."""
    text = STEERING.replace("\ud800", "\U000e0001")
    shown_text = printable_json({text: [text]})
    assert shown_text.isprintable()
    assert json.loads(shown_text) == {text: [text]}


def test_lines_of_the_log_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """Messages, their values and tracebacks are escaped; lines stay lines."""
    factory = logging.getLogRecordFactory()
    stream = io.StringIO()
    log = logging.Logger("test")  # noqa: LOG001 - one that nobody else has
    log.addHandler(logging.StreamHandler(stream))
    try:
        protect_log()
        log.warning("two\nlines %s", STEERING)
        try:
            int(STEERING)
        except ValueError:
            log.exception("it failed")
    finally:
        logging.setLogRecordFactory(factory)
    lines = stream.getvalue().splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[:2] == ["two", f"lines {ESCAPED.partition(chr(92) + 'n')[0]}"]
    assert sum("x1b[2J" in line for line in lines) > 1
    del capsys


def test_no_line_of_the_log_has_a_secret_or_what_went_to_brokers() -> None:
    """Arguments, errors and the bytes of a login are all masked."""
    stream, factory = io.StringIO(), logging.getLogRecordFactory()
    log = logging.Logger("aiokafka.conn")  # noqa: LOG001 - one that nobody else has
    log.addHandler(logging.StreamHandler(stream))
    login = SaslAuthenticateRequest_v0(b"\0worker\0Pa55-of-kafka")
    try:
        protect_log(["Pa55-of-kafka", "", "5", "Pa55"])
        log.debug("Request to %s:%d %d: %s", "broker", 9092, 7, login)
        log.info("logging in with %s", "Pa55-of-kafka")
        log.info(f"logging in with {login!r}")  # noqa: G004 - as a library may
        nothing: dict[str, str] = {}
        try:
            nothing["Pa55-of-kafka"]
        except KeyError:
            log.exception("it failed with Pa55")
    finally:
        logging.setLogRecordFactory(factory)
    assert "Pa55" not in stream.getvalue()
    assert "of-kafka" not in stream.getvalue()
    first, second = stream.getvalue().splitlines()[:2]
    assert first == "Request to broker:9092 7: SaslAuthenticateRequest_v0"
    assert second == "logging in with ********"


@pytest.mark.parametrize("secret", ['a/b %\u00e9\n"1', "tm_1%2F2+3=", "byte-\udcff-of-none"])
def test_no_line_of_the_log_has_a_secret_in_other_words(secret: str) -> None:
    """URLs, JSON and values of Python write a secret in other ways."""
    stream, factory = io.StringIO(), logging.getLogRecordFactory()
    log = logging.Logger("any")  # noqa: LOG001 - one that nobody else has
    log.addHandler(logging.StreamHandler(stream))
    raw = secret.encode("utf-8", "surrogateescape")
    try:
        protect_log([secret])
        for form in (secret, quote(raw, ""), quote_plus(raw), json.dumps({"a": secret}), [secret]):
            log.info("got %s.", form)
        log.info("got %r.", raw)
    finally:
        logging.setLogRecordFactory(factory)
    assert [line.replace(MASK, "") for line in stream.getvalue().splitlines()] == [
        "got .", "got .", "got .", 'got {"a": ""}.', "got [''].", "got b''.",
    ]  # fmt: skip


def test_secrets_from_files_are_masked_like_others(tmp_path: Path) -> None:
    """They are masked in lines of the log, and everywhere that settings are shown."""
    secrets = {
        name: f"secret-of-{name.replace('_', '-')}"
        for name, field in FIELDS.items()
        if is_secret(field)
    }
    flags: dict[str, object] = {
        "kafka_username": "u", "kafka_sasl_mechanism": "PLAIN", "cassandra_username": "u",
        "schema_registry_username": "u",
    }  # fmt: skip
    for name, secret in secrets.items():
        file = tmp_path / name
        file.write_text(f"{secret}\n")
        file.chmod(0o600)
        flags[f"{name}_file"] = str(file)
    settings = load_settings(flags, {})
    stream, factory = io.StringIO(), logging.getLogRecordFactory()
    log = logging.Logger("test")  # noqa: LOG001 - one that nobody else has
    log.addHandler(logging.StreamHandler(stream))
    try:
        protect_log(secrets_of(settings))
        log.warning("%r %s", settings, " ".join(secrets.values()))
    finally:
        logging.setLogRecordFactory(factory)
    for name, secret in secrets.items():
        assert getattr(settings, name) == secret
        assert secret not in stream.getvalue()
        assert secret not in f"{settings!r} {settings.__rich_repr__()}"
    assert stream.getvalue().count(MASK) == 2 * len(secrets)


def test_answers_differences_and_ledgers_are_escaped() -> None:
    """Tables of cells, the report of verify, the lines of the demo and map show are escaped."""
    assert shown(STEERING) == ESCAPED
    table, _ = cells_table(STEERING, [Cell({"k": STEERING}, 0, 1, {"count": 1}, 0)], 80)
    assert str(table.title) == ESCAPED
    counts = {"decoded": 1}
    ledger = {
        "records": {STEERING: {"0": {"read": 1}}}, "events": counts, "layers": {STEERING: counts},
        "balanced": False, "problems": [STEERING],
    }  # fmt: skip
    assert all(line.isprintable() for line in ledger_lines(ledger))


def test_the_report_of_verify_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """Producers write any text into keys."""
    difference = Difference("http", f"hour key {STEERING}", "1", STEERING)
    ledger = {f"malformed.{STEERING}": 1}
    report = Report([LayerReport("hour")], ledger, {}, 1, 1, [difference], [STEERING])
    verify._show(report)
    out = capsys.readouterr().out
    assert all(one.isprintable() or one == "\n" for one in out)
    assert "a\\x1b[2J" in out


def test_errors_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one message of a command that fails may repeat the words of a broker or endpoint."""

    def fail(**_: object) -> None:
        raise TreasureMapError(STEERING)

    monkeypatch.setattr(program.group, "main", fail)

    def run() -> None:
        with pytest.raises(SystemExit):
            program.main()

    with CliRunner().isolation() as (_, err, _):
        run()
        text = err.getvalue().decode()
    assert text.startswith("error: a\\x1b[2J")
    assert all(one.isprintable() or one == "\n" for one in text)


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), 130), (BrokenPipeError(errno.EPIPE, "gone"), 1)],
    ids=["Ctrl-C", "closed pipe"],
)
def test_an_interrupted_command_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int
) -> None:
    """Ctrl-C has an exit code of its own, which scripts tell from a difference or an error."""

    @click.command()
    def command() -> None:
        raise raised

    monkeypatch.setattr(program.LazyGroup, "get_command", lambda *_: command)
    done = CliRunner().invoke(program.group, ["verify"])
    assert done.exit_code == code
    assert isinstance(done.exception, SystemExit)
    assert "Traceback" not in done.output
