"""The compose file and the image, against the program that they run."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from packaging.utils import canonicalize_name

from app.__main__ import COMMANDS
from app.config.settings import FIELDS, Settings, load_settings
from app.mapfile.load import load_map
from tables.model.errors import SettingError
from tests import ROOT
from tests.support import servers
from tests.support.cluster import Worker
from tests.support.common import small_map
from tests.support.compose_file import environment, load_compose, published_schema
from tests.support.deploy_support import (
    STOP_SECONDS,
    WEB_TOKEN,
    arguments_of,
    closure,
    image,
    image_environment,
    parse_command,
    project,
    top_packages,
)
from tests.support.waiting import until
from tests.support.web_support import served

HEALTHCHECK = ROOT / "deploy" / "healthcheck.py"
MAVEN = {"m": "http://maven.apache.org/POM/4.0.0"}
# A full version, not a tag that moves.
PINNED = re.compile(r"^[a-z/-]+:\d+\.\d+\.\d+[a-z0-9.-]*$")
OURS = ("apply", "worker", "generator")


# Compose


def test_the_compose_file_is_one_by_the_published_schema() -> None:
    """And the schema refuses a file with a field it does not know."""
    validator = jsonschema.Draft202012Validator(published_schema("compose-spec"))
    compose = load_compose()
    assert [error.message for error in validator.iter_errors(compose)] == []
    compose["services"]["worker"]["replica"] = 3
    assert [error.message for error in validator.iter_errors(compose)] == [
        "Unevaluated properties are not allowed ('replica' was unexpected)"
    ]


@pytest.mark.parametrize(
    ("service", "artifact"), [("kafka", "kafka_2.13"), ("cassandra", "cassandra-all")]
)
def test_servers_in_containers_have_the_versions_that_are_tested(
    service: str, artifact: str
) -> None:
    """The tag of the image is the version of the jar."""
    pom = ET.parse(servers.POM)  # noqa: S314 - our own file
    versions = {
        item.findtext("m:artifactId", namespaces=MAVEN): item.findtext(
            "m:version", namespaces=MAVEN
        )
        for item in pom.iterfind(".//m:dependency", MAVEN)
    }
    tag = load_compose()["services"][service]["image"].rpartition(":")[2]
    assert tag == versions[artifact]


@pytest.mark.parametrize("service", OURS)
def test_settings_of_a_service_are_settings(service: str) -> None:
    """They can be used, and only because the network is said to be trusted."""
    variables = image_environment() | environment(service)
    settings = load_settings(environ=variables)
    assert settings.archive == "cassandra"
    del variables["TREASURE_MAP_INSECURE"]
    with pytest.raises(SettingError, match=r"(?s)web_host:.*brokers:.*cassandra_hosts:"):
        load_settings(environ=variables)


def test_a_service_reaches_the_servers_under_the_names_they_have() -> None:
    """Brokers are those that Kafka advertises to containers, Cassandra's host is its service."""
    services = load_compose()["services"]
    settings = load_settings(environ=environment("worker"))
    assert f"INTERNAL://{settings.brokers}" in environment("kafka")[
        "KAFKA_ADVERTISED_LISTENERS"
    ].split(",")
    assert set(settings.cassandra_hosts) <= services.keys()
    assert settings.web_port == services["worker"]["ports"][0]["target"]
    assert int(arguments_of("EXPOSE")[0]) == settings.web_port


@pytest.mark.parametrize("service", OURS)
def test_a_service_runs_a_command_that_exists_on_a_map_that_exists(service: str) -> None:
    """The map is mounted at the path that the image reads."""
    described = load_compose()["services"][service]
    parse_command(described.get("command", json.loads(arguments_of("CMD")[0])))
    source, target, mode = described["volumes"][0].split(":")
    assert target == image_environment()["TREASURE_MAP_MAP_FILE"]
    assert mode == "ro"
    themap = load_map(ROOT / source)
    chosen = re.search(r"--source=(\w+)", " ".join(described.get("command", [])))
    if chosen:
        themap.source(chosen[1])


def test_workers_can_be_scaled() -> None:
    """Nothing that two containers would fight for: names, ports, state."""
    worker = load_compose()["services"]["worker"]
    assert "container_name" not in worker
    assert "hostname" not in worker
    assert "TREASURE_MAP_NODE" not in environment("worker")
    # Any free port of this machine for each: only the container's own is given.
    assert [set(port) for port in worker["ports"]] == [{"target", "host_ip"}]
    volumes = [volume for volume in worker["volumes"] if not volume.startswith("./")]
    assert volumes == arguments_of("VOLUME"), "a volume with a name is shared"


def test_everything_waits_for_what_it_needs() -> None:
    """Servers must be healthy and topics must exist; the load starts only when asked for."""
    services = load_compose()["services"]
    healthy = {"condition": "service_healthy"}
    assert services["apply"]["depends_on"] == {"kafka": healthy, "cassandra": healthy}
    applied = {"apply": {"condition": "service_completed_successfully"}}
    assert services["worker"]["depends_on"].items() >= applied.items()
    assert services["generator"]["depends_on"] == applied
    assert [name for name, service in services.items() if "profiles" in service] == ["generator"]
    assert all("healthcheck" in services[name] for name in ("kafka", "cassandra", "apply"))
    assert int(services["worker"]["stop_grace_period"].removesuffix("s")) >= STOP_SECONDS


def test_what_is_published_is_published_on_loopback() -> None:
    """No container is reachable from another machine."""
    for service in load_compose()["services"].values():
        for port in service.get("ports", []):
            host = port["host_ip"] if isinstance(port, dict) else port.split(":")[0]
            assert host == "127.0.0.1"


# The image


def test_the_image_is_pinned_and_runs_a_worker_without_root() -> None:
    """One base for both stages, a user by number, and a program that gets its own signals."""
    bases = {line.split()[0] for line in arguments_of("FROM")}
    (base,) = bases
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", arguments_of("USER")[-1])
    entrypoint = [*json.loads(arguments_of("ENTRYPOINT")[0])]
    assert entrypoint == ["python", "-m", "app"]
    assert json.loads(arguments_of("CMD")[-1])[0] in COMMANDS
    settings = load_settings(environ=image_environment())
    for folder in (settings.state_folder, settings.archive_folder):
        assert folder.is_relative_to(arguments_of("VOLUME")[0])


def test_the_image_gets_every_package_of_ours_and_nothing_else() -> None:
    """The copied folders exist and are let in; examples and tests are not."""
    copied = {
        source
        for line in arguments_of("COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    }
    let_in = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert copied == let_in
    assert all((ROOT / path).exists() for path in copied)
    assert {path for path in copied if (ROOT / path).is_dir()} == top_packages()


def test_the_image_gets_exactly_the_packages_that_a_worker_needs() -> None:
    """The part of the lock above the heading is the closure of a worker's dependencies."""
    (expression,) = re.findall(r"sed '/(\^.*?)/,\$d'", " ".join(arguments_of("RUN")))
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    (end,) = [number for number, line in enumerate(lines) if re.search(expression, line)]
    pins = [line.partition("==")[0] for line in lines[:end] if "==" in line]
    declared = project()["project"]
    extras = declared["optional-dependencies"]
    asked = [
        *declared["dependencies"], *extras["worker"], *extras["cassandra"], *extras["verify"],
        *extras["avro"], *extras["protobuf"],
    ]  # fmt: skip
    assert {canonicalize_name(name) for name in pins} == closure(asked)


# The health check of the image


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"web_port": 7000}, "http://127.0.0.1:7000/livez"),
        ({"web_host": "0.0.0.0"}, "http://127.0.0.1:6066/livez"),  # noqa: S104 - asks, binds nothing
        ({"web_host": "::"}, "http://[::1]:6066/livez"),
        ({"web_host": "::1"}, "http://[::1]:6066/livez"),
        ({"web_host": "10.1.2.3", "web_cert_file": "c"}, "https://10.1.2.3:6066/livez"),
        ({"web_host": "worker.example"}, "http://worker.example:6066/livez"),
    ],
)
def test_the_health_check_asks_where_the_worker_listens(settings: dict[str, Any], url: str) -> None:
    """It asks loopback if the worker listens on every address."""
    spec = importlib.util.spec_from_file_location("healthcheck", HEALTHCHECK)
    assert spec is not None
    assert spec.loader is not None
    healthcheck = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(healthcheck)
    assert healthcheck.livez_url(Settings(**settings)) == url


def check_health(variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the health check like in a container with these settings."""
    return subprocess.run(
        [sys.executable, HEALTHCHECK],
        env={"PYTHONPATH": str(ROOT), **variables},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_health_check_says_why_it_fails() -> None:
    """Nothing listens, or the settings cannot be used: one line and exit code 1."""
    (port,) = servers.free_ports(1)
    done = check_health({"TREASURE_MAP_WEB_PORT": str(port)})
    assert done.returncode == 1
    assert re.fullmatch(r"cannot see that the worker lives: .*refused.*\n", done.stderr)
    done = check_health({"TREASURE_MAP_WEB_PORT": "none"})
    assert done.returncode == 1
    assert done.stderr.startswith("cannot see that the worker lives: cannot use settings")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_the_health_check_needs_no_authority_and_no_token(tmp_path: Path) -> None:
    """A worker with TLS and a token is asked like any other, past a proxy that is not there."""
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    await asyncio.to_thread(
        subprocess.run,
        [*command, "-nodes", "-days", "1", "-subj", "/CN=other", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    settings: dict[str, Any] = {"web_cert_file": cert, "web_key_file": key, "web_token": WEB_TOKEN}
    async with served(small_map(), tmp_path / "archive", **settings) as (_, url):
        variables = {f"TREASURE_MAP_{name.upper()}": value for name, value in settings.items()}
        variables["TREASURE_MAP_WEB_PORT"] = url.rpartition(":")[2]
        variables["https_proxy"] = "http://127.0.0.1:1"
        done = await asyncio.to_thread(check_health, variables)
    assert (done.returncode, done.stderr) == (0, "")


# Everything that people deploy with


def test_images_are_pinned_and_ours_has_the_version_of_the_project() -> None:
    """No tag that moves."""
    names = [service["image"] for service in load_compose()["services"].values()]
    names += [line.split()[0] for line in arguments_of("FROM")]
    assert all(PINNED.match(name) for name in names), names
    assert {name for name in names if name.startswith("treasure-map")} == {image()}


@pytest.mark.parametrize(
    "path", ["docker-compose.yml", "Dockerfile", "deploy", "docs/DEPLOYING.md"]
)
def test_every_setting_that_is_named_exists(path: str) -> None:
    """Files that run and pages that explain name only settings that exist."""
    inside = (ROOT / path).rglob("*")
    files = [f for f in inside if f.is_file() and "__pycache__" not in f.parts] or [ROOT / path]
    names = {
        found for file in files for found in re.findall(r"TREASURE_MAP_[A-Z_]+", file.read_text())
    }
    known = {f"TREASURE_MAP_{name.upper()}" for name in FIELDS} | {"TREASURE_MAP_SERVICE_HOST"}
    assert names <= known


# A worker on the compose file's settings


def get(url: str, host: str) -> int | None:
    """Return the status of an answer to a request that names a host; None if there is no answer."""
    request = urllib.request.Request(url, headers={"Host": host})  # noqa: S310 - http
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - http
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def run_service(
    service: str, variables: Mapping[str, str], *changes: str
) -> subprocess.CompletedProcess[str]:
    """Run the command of a service to its end, on the map that is mounted into its container."""
    described = load_compose()["services"][service]
    source, target, _ = described["volumes"][0].split(":")
    command = [word.replace(target, str(ROOT / source)) for word in described["command"]]
    return subprocess.run(
        [sys.executable, "-m", "app", *command, *changes],
        env={**image_environment(), **environment(service), **variables},
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.cassandra
async def test_the_services_run_on_the_settings_of_the_compose_file(
    tmp_path: Path, cassandra: tuple[str, int]
) -> None:
    """Commands, settings and map are those of the file; hosts, ports, folders are this machine's.

    The map is applied. The worker is ready by any name of its host, as a probe by a container's
    address asks, and passes the image's health check. It folds the generator's events, and ends
    in order.
    """
    reason = servers.why_missing("kafka")
    if reason is not None:
        pytest.skip(reason)
    with servers.KafkaServer(tmp_path / "kafka") as kafka, contextlib.ExitStack() as ending:
        here = {
            "TREASURE_MAP_BROKERS": kafka.listeners["INTERNAL"],
            "TREASURE_MAP_CASSANDRA_HOSTS": cassandra[0],
            "TREASURE_MAP_CASSANDRA_PORT": str(cassandra[1]),
            # The file names no keyspace; every test has its own.
            "TREASURE_MAP_CASSANDRA_KEYSPACE": f"t{uuid.uuid4().hex}",
        }
        applied = await asyncio.to_thread(run_service, "apply", here)
        assert applied.returncode == 0, applied.stderr

        source = load_compose()["services"]["worker"]["volumes"][0].split(":")[0]
        here["TREASURE_MAP_MAP_FILE"] = str(ROOT / source)
        variables = image_environment() | environment("worker") | here
        worker = Worker(socket.gethostname(), tmp_path, variables)
        ending.callback(worker.stop)
        worker.start()

        async def ready() -> bool:
            # Says why, if the process has ended.
            await asyncio.to_thread(worker.get, "layers")
            return await asyncio.to_thread(get, f"{worker.url}/readyz", "10.1.2.3:6066") == 200

        await until(ready, 90)
        variables["TREASURE_MAP_WEB_PORT"] = worker.url.rpartition(":")[2]
        health = await asyncio.to_thread(check_health, variables)
        assert (health.returncode, health.stderr) == (0, "")

        small = ("--rate=500", "--seconds=1", f"--manifest={tmp_path / 'manifest.json'}")
        loaded = await asyncio.to_thread(run_service, "generator", here, *small)
        assert loaded.returncode == 0, loaded.stderr

        async def folded() -> bool:
            ledger = await asyncio.to_thread(worker.get, "ledger")
            return ledger is not None and ledger["layers"]["orders_minute"]["folded"] > 0

        await until(folded, 60)
        assert await asyncio.to_thread(worker.stop) == 0
