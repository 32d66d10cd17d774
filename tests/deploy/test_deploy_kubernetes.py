"""The manifest for Kubernetes, against the program and the image that it runs."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from aiohttp import web
from yarl import URL

from app.config.connections import advertised_url
from app.config.settings import Settings, load_settings
from app.mapfile.load import load_map
from app.web.access import OPEN, scopes
from app.web.endpoint import install
from tables.archive.cache import ArchiveCache
from tables.model.errors import SettingError
from tests import ROOT
from tests.support.common import small_map
from tests.support.deploy_support import (
    STOP_SECONDS,
    WEB_TOKEN,
    arguments_of,
    image,
    image_environment,
    parse_command,
)
from tests.support.pki import Authority
from tests.support.web_support import StandingView

MANIFEST = ROOT / "deploy" / "kubernetes.yaml"


def manifest() -> list[dict[str, Any]]:
    """Return the objects of the manifest."""
    return list(yaml.safe_load_all(MANIFEST.read_text("utf-8")))


def one(kind: str, name: str = "treasure-map") -> dict[str, Any]:
    """Return the object of a kind and name."""
    (found,) = [m for m in manifest() if m["kind"] == kind and m["metadata"]["name"] == name]
    return found


def pods() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the spec of a pod, and its only container, of each object that makes pods."""
    for made in manifest():
        if made["kind"] in ("StatefulSet", "Job"):
            pod = made["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            yield pod, container


def pod_environment(container: dict[str, Any]) -> dict[str, str]:
    """Return the settings that a container gets, with a token as the secret."""
    variables = image_environment()
    for source in container["envFrom"]:
        if "configMapRef" in source:
            variables |= one("ConfigMap", source["configMapRef"]["name"])["data"]
        else:
            variables["TREASURE_MAP_WEB_TOKEN"] = WEB_TOKEN
    fields = {
        "metadata.name": "treasure-map-0", "metadata.namespace": "default",
        "status.podIP": "10.1.2.3",
    }  # fmt: skip
    for item in container.get("env", []):
        from_field = item.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        value = fields[from_field] if from_field else item["value"]
        # As the kubelet does, of variables that stand before.
        value = re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], value)
        variables[item["name"]] = value
    return variables


async def test_the_certificate_that_is_asked_for_is_taken_by_other_workers(tmp_path: Path) -> None:
    """OpenSSL takes no wildcard with one dot: the name of the namespace is in it too."""
    told = re.search(r"The certificate is for (\S+),", MANIFEST.read_text("utf-8"))
    assert told is not None
    (worker,) = [container for _, container in pods() if container["name"] == "worker"]
    host = URL(pod_environment(worker)["TREASURE_MAP_WEB_URL"]).host
    authority = Authority(tmp_path)
    made = authority.issue("worker", told[1].replace("NAMESPACE", "default"))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(made.cert_file, made.key_file)
    server = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", 0, ssl=serving)
    async with server:
        port = server.sockets[0].getsockname()[1]
        checks = ssl.create_default_context(cafile=authority.ca_file)
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=checks, server_hostname=host
        )
        writer.close()


def test_pods_get_settings_that_are_closed_to_others() -> None:
    """Token and TLS on every side; nothing is called insecure."""
    for _, container in pods():
        settings = load_settings(environ=pod_environment(container))
        assert not settings.insecure
        assert settings.kafka_uses_tls
        assert settings.cassandra_uses_tls
    (worker,) = [container for _, container in pods() if container["name"] == "worker"]
    settings = load_settings(environ=pod_environment(worker))
    assert (settings.node, settings.web_host) == ("treasure-map-0", "10.1.2.3")
    assert advertised_url(settings) == "https://treasure-map-0.treasure-map-peers.default:6066"
    without = pod_environment(worker)
    del without["TREASURE_MAP_WEB_TOKEN"]
    with pytest.raises(SettingError, match="web_token"):
        load_settings(environ=without)


def test_pods_run_without_root_what_the_image_holds() -> None:
    """The image's user, a file system that is read only, no service's variables as settings."""
    user, group_id = (int(part) for part in arguments_of("USER")[-1].split(":"))
    for pod, container in pods():
        assert container["image"] == image()
        parse_command(container.get("args", ["worker"]))
        assert pod["securityContext"].items() >= {
            "runAsNonRoot": True, "runAsUser": user, "runAsGroup": group_id, "fsGroup": group_id,
        }.items()  # fmt: skip
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False


def test_everything_a_pod_mounts_is_there_and_where_settings_say() -> None:
    """Map, certificates and state; a folder that can be written for each that is."""
    claims = [
        claim["metadata"]["name"] for claim in one("StatefulSet")["spec"]["volumeClaimTemplates"]
    ]
    for pod, container in pods():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() <= volumes.keys() | set(claims)
        settings = load_settings(environ=pod_environment(container))
        assert settings.map_file == Path(mounts["map"])
        files = (settings.web_cert_file, settings.web_ca_file, settings.kafka_ca_file,
                 settings.cassandra_ca_file)  # fmt: skip
        assert all(Path(file).is_relative_to(mounts["tls"]) for file in files if file)
        if container["name"] == "worker":
            assert settings.state_folder.is_relative_to(mounts["state"])
            assert settings.archive == "cassandra"


def test_the_secrets_that_pods_want_are_told_how_to_make() -> None:
    """They stand in no file; the head of the manifest has the commands, with every file's name."""
    text = MANIFEST.read_text("utf-8")
    head = text.partition("\n\n")[0]
    named = set(re.findall(r"secret(?:Name|Ref): ?(?:\{name: )?([\w-]+)", text))
    assert named == set(re.findall(r"create secret generic ([\w-]+)", head))
    assert "Secret" not in {made["kind"] for made in manifest()}
    for file in set(re.findall(r"/etc/treasure-map/tls/([\w.-]+)", text)):
        assert f"--from-file={file}" in head


def test_probes_ask_paths_that_answer_without_a_token() -> None:
    """Probes use TLS, at the port of the worker."""
    site = web.Application()
    nothing = cast("Any", None)
    view = StandingView(small_map(), nothing, nothing)
    settings, cache = Settings(web_token=WEB_TOKEN), ArchiveCache(nothing, 0)
    install(site, view, settings, live=nothing, cache=cache, metrics=bytes)
    (worker,) = [container for _, container in pods() if container["name"] == "worker"]
    (port,) = worker["ports"]
    assert port["containerPort"] == load_settings(environ=pod_environment(worker)).web_port
    paths = {}
    for name in ("startup", "liveness", "readiness"):
        asked = worker[f"{name}Probe"]["httpGet"]
        assert (asked["port"], asked["scheme"]) == (port["name"], "HTTPS")
        paths[name] = asked["path"]
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    assert {scopes(site)[path] for path in paths.values()} == {OPEN}


def test_a_worker_has_one_core_and_ends_in_order() -> None:
    """Equal requests and limits; selectors that find its pods; one away at a time."""
    workers = one("StatefulSet")
    pod = workers["spec"]["template"]
    resources = pod["spec"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["requests"]["cpu"] == "1"
    assert pod["spec"]["terminationGracePeriodSeconds"] >= STOP_SECONDS
    labels = pod["metadata"]["labels"]
    assert workers["spec"]["selector"]["matchLabels"] == labels
    readers, peers = one("Service"), one("Service", "treasure-map-peers")
    for service in (readers, peers):
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["selector"] == labels
    assert peers["metadata"]["name"] == workers["spec"]["serviceName"]
    assert peers["spec"]["publishNotReadyAddresses"], "others ask a worker that restores"
    assert "publishNotReadyAddresses" not in readers["spec"]
    assert one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    applying = one("Job", "treasure-map-apply")["spec"]["template"]["metadata"]["labels"]
    assert applying != labels, "a Service must not find a pod that makes tables"


def test_the_map_of_the_manifest_can_be_used(tmp_path: Path) -> None:
    """It is checked like any other."""
    (tmp_path / "map.toml").write_text(one("ConfigMap")["data"]["map.toml"])
    load_map(tmp_path / "map.toml")
