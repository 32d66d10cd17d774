"""Certificate files that cannot be used are told before anything connects, with their setting."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from app.config.connections import cassandra_settings, kafka_options, peers_tls
from app.config.settings import Settings
from app.trust.certificates import PemFiles, client_context, server_context
from app.web.guard import ssl_context
from tables.model.errors import SettingError

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="makes its certificates with openssl"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Make a certificate, its key plain and encrypted, another's key, and a file of junk."""
    folder = tmp_path_factory.mktemp("certificates")
    for name, key in (("cert", ["-nodes"]), ("other", ["-nodes"])):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", *key, "-days", "1",
             "-subj", "/CN=localhost", "-keyout", f"{name}.key", "-out", f"{name}.pem"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
    subprocess.run(
        ["openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", "cert.key", "-out",
         "locked.key"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    (folder / "none.pem").write_text("no certificate")
    names = ("cert.pem", "cert.key", "other.key", "locked.key", "none.pem", "missing.pem")
    return {name: str(folder / name) for name in names}


@pytest.mark.parametrize(
    ("cert", "key", "told"),
    [
        ("cert.pem", "locked.key", "web_key_file: it is encrypted"),
        ("cert.pem", "other.key", "web_cert_file: key values mismatch"),
        ("cert.pem", "missing.pem", "web_cert_file: No such file or directory"),
        ("missing.pem", "cert.key", "web_cert_file: No such file or directory"),
        ("none.pem", "cert.key", "web_cert_file: "),
    ],
)
def test_a_certificate_that_cannot_be_used_is_told(
    files: dict[str, str], cert: str, key: str, told: str
) -> None:
    """A key with a passphrase does not wait on the terminal."""
    with pytest.raises(SettingError, match=f"cannot use {told}") as raised:
        server_context(PemFiles("web", "", files[cert], files[key]))
    assert files[key] in str(raised.value)
    with pytest.raises(SettingError, match=f"cannot use {told.replace('web', 'kafka')}"):
        client_context(PemFiles("kafka", "", files[cert], files[key]))


def test_files_that_can_be_used_are(files: dict[str, str]) -> None:
    """A server's side, and a client's with and without a certificate of its own."""
    server_context(PemFiles("web", "", files["cert.pem"], files["cert.key"]))
    assert client_context(PemFiles("web")).check_hostname
    assert client_context(PemFiles("web", files["cert.pem"], files["cert.pem"], files["cert.key"]))


@pytest.mark.parametrize("name", ["missing.pem", "none.pem"])
def test_authorities_that_cannot_be_read_end_every_command(
    files: dict[str, str], name: str
) -> None:
    """Kafka, Cassandra and the other workers alike are not tried without them."""
    pytest.importorskip("cassandra")
    ca = files[name]
    for made, of in (
        (lambda: kafka_options(Settings(kafka_ca_file=ca)), "kafka"),
        (lambda: cassandra_settings(Settings(cassandra_ca_file=ca)), "cassandra"),
        (lambda: peers_tls(Settings(web_ca_file=ca)), "web"),
    ):
        with pytest.raises(SettingError, match=f"cannot use {of}_ca_file: .*; got {ca}; want"):
            made()


def test_without_a_certificate_the_endpoint_speaks_plain() -> None:
    """The settings check this against the address that it binds."""
    assert ssl_context(Settings()) is None
