"""The settings of docker-compose.yml, as the images' entrypoints understand them; its schema.

The tests' servers run on these settings, so that the file cannot drift from the tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any, cast

import yaml

from tests import ROOT

COMPOSE = ROOT / "docker-compose.yml"

# Variables that apache/kafka's KafkaDockerWrapper keeps out of server.properties, and the heap,
# which its list spells wrongly; the broker knows no such property.
_NO_KAFKA_PROPERTIES = {"KAFKA_HEAP_OPTS", "KAFKA_OPTS", "KAFKA_JVM_PERFORMANCE_OPTS"}
# The fields of cassandra.yaml that the Cassandra image's docker-entrypoint.sh sets.
_CASSANDRA_FIELDS = (
    "broadcast_address",
    "broadcast_rpc_address",
    "cluster_name",
    "endpoint_snitch",
    "listen_address",
    "num_tokens",
    "rpc_address",
)
# Variables that the Cassandra image's start script, cassandra-env.sh, reads.
_CASSANDRA_JVM = {"MAX_HEAP_SIZE", "HEAP_NEWSIZE", "JVM_EXTRA_OPTS"}


def published_schema(name: str) -> dict[str, Any]:
    """Return a published JSON schema such as ``compose-spec``, as check-jsonschema carries it."""
    files = metadata.files("check-jsonschema") or []
    (path,) = [file for file in files if file.name == f"{name}.json"]
    return cast("dict[str, Any]", json.loads(path.read_text("utf-8")))


def load_compose() -> dict[str, Any]:
    """Return docker-compose.yml as data, anchors and merges resolved."""
    return cast("dict[str, Any]", yaml.safe_load(COMPOSE.read_text("utf-8")))


def environment(service: str) -> dict[str, str]:
    """Return the environment of a service, as text like in its container."""
    return {
        name: str(value)
        for name, value in load_compose()["services"][service]["environment"].items()
    }


def kafka_properties(variables: Mapping[str, str]) -> dict[str, str]:
    """Return server.properties as the image apache/kafka makes it of its environment.

    ``KAFKA_A_B`` is ``a.b``; two underscores stand for one, three for a dash.
    """
    return {
        name.removeprefix("KAFKA_")
        .lower()
        .replace("_", ".")
        .replace("...", "-")
        .replace("..", "_"): value
        for name, value in variables.items()
        if name.startswith("KAFKA_") and name not in _NO_KAFKA_PROPERTIES
    }


def cassandra_fields(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of cassandra.yaml that the image cassandra sets of its environment.

    Raises:
        ValueError: a variable that the image reads nowhere, so that it would change nothing.
    """
    known = {f"CASSANDRA_{field.upper()}": field for field in _CASSANDRA_FIELDS}
    unknown = variables.keys() - known.keys() - _CASSANDRA_JVM
    if unknown:
        raise ValueError(
            f"cannot use the environment of cassandra: its image reads no {', '.join(unknown)};"
            f" want {', '.join(known)}, {', '.join(_CASSANDRA_JVM)}"
        )
    return {known[name]: value for name, value in variables.items() if name in known}


def cassandra_jvm(variables: Mapping[str, str]) -> list[str]:
    """Return the JVM options that cassandra-env.sh makes of its environment."""
    heap, young = variables["MAX_HEAP_SIZE"], variables["HEAP_NEWSIZE"]
    return [f"-Xms{heap}", f"-Xmx{heap}", f"-Xmn{young}", *variables["JVM_EXTRA_OPTS"].split()]
