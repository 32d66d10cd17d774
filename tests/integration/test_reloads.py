"""Certificates, keys and tokens are read again while a worker runs, and SIGHUP does not end it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.config.settings import load_settings
from app.host.reloads import Reload, Reloads
from app.trust.certificates import ContextOfNow, PemFiles, client_context, server_context
from app.trust.tokens import make_token
from tables.model.errors import SettingError
from tests.support.common import small_map
from tests.support.pki import PASSPHRASE, Authority, Certificate
from tests.support.waiting import stays, until
from tests.support.web_support import get, served
from tests.support.worker_process import Process, apply

MAP = small_map()
TOKEN = "correct-horse-battery"  # noqa: S105 - no password of anything


def reloads() -> Reloads:
    """Return reloads without a task: tests look at the files."""
    return Reloads()


def test_a_file_that_is_broken_for_one_look_is_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be half written; a lasting error is logged once, and counts at once."""
    file, found = tmp_path / "file", []

    def load() -> None:
        text = file.read_text()
        if text == "bad":
            raise SettingError("it is bad")
        found.append(text)

    file.write_text("one")
    one = Reload("thing", [str(file), ""], load)
    one.look()
    assert found == ["one"]
    file.write_text("bad")
    one.look()
    assert (one.error, caplog.text) == ("it is bad", "")
    file.write_text("two")
    one.look()
    assert (one.error, found, caplog.text) == ("", ["one", "two"], "")
    file.unlink()
    for _ in range(5):
        one.look()
    assert "No such file" in one.error
    assert [record.getMessage().partition(": [")[0] for record in caplog.records] == [
        "thing: the last good contents stay in use"
    ]
    file.write_text("three")
    one.look()
    assert (one.error, found[-1], one.loads_total) == ("", "three", 2)


def put(made: Certificate, cert: Path, key: Path) -> None:
    """Put a certificate and its key at the paths of the settings, as a renewal does."""
    for source, target in ((made.cert_file, cert), (made.key_file, key)):
        target.with_suffix(".new").write_bytes(source.read_bytes())
        target.with_suffix(".new").chmod(0o600)
        target.with_suffix(".new").replace(target)


async def shown(url: str, authority: Authority) -> str:
    """Return the fingerprint of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=authority.ca_file)
    place = urlsplit(url)
    _, writer = await asyncio.open_connection(place.hostname, place.port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return hashlib.sha256(der).hexdigest()


def fingerprint(made: Certificate) -> str:
    """Return the fingerprint of a certificate."""
    der = ssl.PEM_cert_to_DER_cert(made.cert_file.read_text().partition("\n-----BEGIN")[0])
    return hashlib.sha256(der).hexdigest()


async def test_a_renewed_certificate_is_shown_to_new_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Old ones go on; a key of another certificate changes nothing, with one warning."""
    monkeypatch.setattr("app.host.reloads.LOOK_S", 0.05)
    authority = Authority(tmp_path)
    one, two, three = (authority.issue(name) for name in ("one", "two", "three"))
    cert, key = tmp_path / "web.crt", tmp_path / "web.key"
    put(one, cert, key)
    settings: dict[str, Any] = {"web_cert_file": str(cert), "web_key_file": str(key)}
    context = ssl.create_default_context(cafile=authority.ca_file)
    async with served(MAP, tmp_path / "a", **settings) as (_, url):
        place = urlsplit(url)
        assert await shown(url, authority) == fingerprint(one)
        reader, writer = await asyncio.open_connection(place.hostname, place.port, ssl=context)

        async def is_shown(made: Certificate) -> bool:
            return await shown(url, authority) == fingerprint(made)

        put(two, cert, key)
        await until(lambda: is_shown(two), 10)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b'{"live":true}')
        writer.transport.abort()

        shutil.copy(three.key_file, key)
        await until(lambda: "the last good contents" in caplog.text, 10)
        await stays(lambda: is_shown(two), 0.5)
        warnings = [one.getMessage() for one in caplog.records if one.name == "app.host.reloads"]
        assert len(warnings) == 1
        assert (
            "web_server: the last good contents stay in use: cannot use web_cert_file: key"
            in (warnings[0])
        )
        shutil.copy(three.cert_file, cert)
        await until(lambda: is_shown(three), 10)


@contextlib.asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[tuple[int, list[str]]]:
    """Run a server; give its port, and the names that clients showed."""
    names: list[str] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peercert") or {}
        subject = {key: value for ((key, value), *_) in peer.get("subject", ())}
        names.append(subject.get("commonName", ""))
        writer.write(b"x")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], names


async def connect(port: int, context: ssl.SSLContext) -> None:
    """Connect as a client of brokers does, with the context that it has had all along."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    assert await reader.read(1) == b"x"
    writer.transport.abort()


def connect_by_thread(port: int, context: ssl.SSLContext) -> None:
    """Connect as the Cassandra driver does, likewise."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        assert secure.recv(1) == b"x"


async def test_a_client_takes_a_new_authority_and_a_new_certificate(tmp_path: Path) -> None:
    """The context that a Kafka client holds has them for its next connection."""
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    first, second = ours.issue("first"), ours.issue("second")
    cert, key, ca = (tmp_path / name for name in ("c.crt", "c.key", "ca.pem"))
    put(first, cert, key)
    ca.write_bytes(ours.ca_file.read_bytes())
    looks = reloads()
    context = client_context(PemFiles("kafka", str(ca), str(cert), str(key)), looks)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ours.ca_file)
    server.verify_mode = ssl.CERT_REQUIRED
    of_theirs = theirs.issue("server")
    server.load_cert_chain(of_theirs.cert_file, of_theirs.key_file)
    async with tls_server(server) as (port, names):
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(port, context)
        ca.write_bytes(ours.ca_file.read_bytes() + theirs.ca_file.read_bytes())
        looks.look()
        await connect(port, context)
        put(second, cert, key)
        looks.look()
        await connect(port, context)
        ca.write_text("no certificate")
        looks.look()
        assert looks.all[0].error.startswith("cannot use kafka_ca_file: ")
        await connect(port, context)
        await asyncio.to_thread(connect_by_thread, port, context)
        ca.write_bytes(ours.ca_file.read_bytes())
        looks.look()
        for attempt in (
            connect(port, context),
            asyncio.to_thread(connect_by_thread, port, context),
        ):
            with pytest.raises(ssl.SSLCertVerificationError):
                await attempt
    assert [name for name in names if name] == ["first", "second", "second", "second"]


def test_a_context_of_now_trusts_nobody_by_itself(tmp_path: Path) -> None:
    """Should anything connect past it, it fails."""
    ca_file = Authority(tmp_path).ca_file
    context = client_context(PemFiles("kafka", str(ca_file)), reloads())
    assert isinstance(context, ContextOfNow)
    assert len(context.get_ca_certs()) == 1
    assert ssl.SSLContext.get_ca_certs(context) == []
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize("of", ["web", "kafka", "cassandra"])
def test_an_encrypted_key_opens_with_its_passphrase(tmp_path: Path, of: str) -> None:
    """A file has it; a wrong or missing one is told with the setting, and never shown."""
    made = Authority(tmp_path).issue("a")
    password = tmp_path / "password"
    password.write_text(f"{PASSPHRASE}\n")
    files = (str(made.cert_file), str(made.locked_key_file))

    def load(password_file: str) -> None:
        server_context(PemFiles(of, "", *files, password_file))
        client_context(PemFiles(of, "", *files, password_file))

    load(str(password))
    with pytest.raises(SettingError, match=f"{of}_key_file: it is encrypted; .*{of}_key_password_"):
        load("")
    password.write_text("not the passphrase")
    with pytest.raises(SettingError) as raised:
        load(str(password))
    assert str(raised.value) == (
        f"cannot use {of}_key_password_file: its passphrase does not open the key; got {password}"
        f" for {made.locked_key_file}; want the passphrase of that key"
    )
    password.write_text("")
    with pytest.raises(SettingError, match=f"cannot use {of}_key_password_file: it is empty"):
        load(str(password))
    with pytest.raises(SettingError, match=f"cannot use {of}_key_password_file: cannot read it"):
        load(str(tmp_path / "none"))
    password.write_text("x" * 2_000)
    with pytest.raises(SettingError, match=f"cannot use {of}_key_password_file: "):
        load(str(password))
    with pytest.raises(
        SettingError, match=f"{of}_key_password_file: got a value, without {of}_key"
    ):
        load_settings({f"{of}_key_password_file": str(password)}, {})


async def test_a_key_and_its_passphrase_change_together(tmp_path: Path) -> None:
    """Whichever is written first."""
    authority = Authority(tmp_path)
    one, two = authority.issue("one"), authority.issue("two")
    cert, key, password = (tmp_path / name for name in ("w.crt", "w.key", "w.password"))
    put(one, cert, key)
    looks = reloads()
    context = server_context(PemFiles("web", "", str(cert), str(key), str(password)), looks)
    async with tls_server(context) as (port, _):
        url = f"https://127.0.0.1:{port}"
        shutil.copy(two.cert_file, cert)
        looks.look()
        shutil.copy(two.locked_key_file, key)
        looks.look()
        assert looks.all[0].error.startswith("cannot use web_key_password_file: cannot read it")
        assert await shown(url, authority) == fingerprint(one)
        password.write_text(PASSPHRASE)
        looks.look()
        assert looks.all[0].error == ""
        assert await shown(url, authority) == fingerprint(two)


async def test_sighup_has_files_read_again_and_ends_nothing(
    processes: Callable[..., Process], tmp_path: Path
) -> None:
    """The worker is a real one, whose tokens and certificate change."""
    authority = Authority(tmp_path)
    one, two = authority.issue("one"), authority.issue("two")
    cert, key, tokens = (tmp_path / name for name in ("w.crt", "w.key", "tokens.json"))
    put(one, cert, key)
    make_token(tokens, "first", ["read"])
    worker = processes(web_cert_file=str(cert), web_key_file=str(key), web_tokens_file=str(tokens))
    await apply(worker)
    worker.start()
    url = f"https://127.0.0.1:{worker.port}"

    async def answers() -> bool:
        assert worker.running.poll() is None, worker.log()
        with contextlib.suppress(OSError):
            return bool(await shown(url, authority))
        return False

    await until(answers, 60)
    assert await shown(url, authority) == fingerprint(one)
    put(two, cert, key)
    make_token(tokens, "second", ["read"])
    for _ in range(3):
        worker.running.send_signal(signal.SIGHUP)
    await worker.says("SIGHUP: certificates, keys and tokens are checked")
    await worker.says("web_server: the changed files are in use")
    await worker.says("tokens: the changed files are in use")
    assert await shown(url, authority) == fingerprint(two)
    assert await worker.stop() == 0
    assert "tm_" not in worker.log()


async def test_sighup_does_not_end_a_worker_that_starts(processes: Callable[..., Process]) -> None:
    """It survives from the moment that its command is loaded."""
    worker = processes()
    await apply(worker)
    worker.start()
    status = Path(f"/proc/{worker.running.pid}/status")

    async def is_safe() -> bool:
        lines = (await asyncio.to_thread(status.read_text)).splitlines()
        masks = [
            int(line.split()[1], 16) for line in lines if line.startswith(("SigIgn", "SigCgt"))
        ]
        return any(mask >> (signal.SIGHUP - 1) & 1 for mask in masks)

    await until(is_safe, 30)
    assert "Kafka" not in worker.log()
    worker.running.send_signal(signal.SIGHUP)
    await worker.ready()
    assert await worker.stop() == 0


async def test_reloads_are_told_in_the_readiness(tmp_path: Path) -> None:
    """A worker whose files are broken is ready: it has the last good ones."""
    tokens = tmp_path / "tokens.json"
    make_token(tokens, "first", ["read"])
    settings: dict[str, Any] = {"web_tokens_file": str(tokens), "web_token": TOKEN}
    async with served(MAP, tmp_path / "a", **settings) as (_, url):
        tokens.unlink()

        async def is_told() -> bool:
            status, body, _ = await get(f"{url}/readyz", Authorization=f"Bearer {TOKEN}")
            assert status == 200
            return any("No such file" in warning for warning in body["warnings"])

        await until(is_told, 10)


def test_looking_goes_on_after_an_error(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """One file that is broken does not keep others from being read."""
    caplog.set_level(logging.INFO)
    looks, found = reloads(), list[str]()
    broken, good = tmp_path / "broken", tmp_path / "good"
    for file in (broken, good):
        file.write_text("")

    def read_broken() -> None:
        broken.read_text()

    looks.add("broken", [str(broken)], read_broken)
    looks.add("good", [str(good)], lambda: found.append(good.read_text()))
    broken.unlink()
    good.write_text("new")
    looks.look()
    assert found == ["", "new"]
    assert looks.warnings()[0].startswith("broken: ")
