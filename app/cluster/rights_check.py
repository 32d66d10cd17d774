"""Whether this user has the rights that it needs, asked before anything begins.

Brokers answer with the operations that a user may do on a topic or group (KIP-430). One that is
too old for that reports nothing; then a missing right shows when it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from aiokafka import errors
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataResponse_v5
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from app.cluster.rights import Right, RightsError, Role
from app.kafka.brokers import answer_of_any, connect_error
from app.kafka.operations import Operation

_BITS: dict[Operation, int] = {
    "Read": 3, "Write": 4, "Create": 5, "Delete": 6, "Describe": 8, "DescribeConfigs": 10,
}  # fmt: skip
"""Kafka's numbers of operations: their bits in an answer."""


_BEFORE = MetadataResponse_v5.SCHEMA


class _MetadataResponse(Response):  # type: ignore[misc]  # aiokafka comes without types
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        *zip(_BEFORE.names[:4], _BEFORE.fields[:4], strict=True),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )


class _MetadataStruct(RequestStruct):  # type: ignore[misc]  # aiokafka comes without types
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _Metadata(Request[_MetadataStruct]):  # type: ignore[misc]  # aiokafka comes without types
    """Asks for topics, all by default, and the operations that are allowed on each.

    A topic that is asked for by name is not made.
    """

    API_KEY: ClassVar[int] = 3

    def __init__(self, names: list[str] | None = None) -> None:
        self._names = names

    def build(self, request_struct_class: type[_MetadataStruct]) -> _MetadataStruct:
        return request_struct_class(self._names, False, False, True)


class _GroupsStruct(RequestStruct):  # type: ignore[misc]  # aiokafka comes without types
    API_KEY = 15
    API_VERSION = 3
    # aiokafka's own has the answer of an older version here.
    RESPONSE_TYPE = DescribeGroupsResponse_v3
    SCHEMA = DescribeGroupsRequest_v3.SCHEMA


class _Groups(Request[_GroupsStruct]):  # type: ignore[misc]  # aiokafka comes without types
    API_KEY: ClassVar[int] = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_GroupsStruct]) -> _GroupsStruct:
        return request_struct_class([self._group], True)


async def check_rights(
    brokers: str,
    options: Mapping[str, Any],
    rights: Iterable[Right],
    *,
    cannot: str,
    role: Role,
    may_lack: bool = False,
) -> None:
    """Check that this user has rights, before anything begins.

    ``cannot`` is the action that needs them, as the beginning of a sentence; ``role`` is whose they
    are. Topics may be missing if they ``may_lack``.

    Raises:
        RightsError: some rights are missing.
        TreasureMapError: there is no connection.
    """
    try:
        problems = await missing_rights(brokers, options, rights, may_lack=may_lack)
    except (errors.KafkaError, OSError, TimeoutError) as error:
        raise await connect_error(error, cannot, brokers, options) from error
    if problems:
        raise RightsError(cannot, role, problems, options)


async def missing_rights(
    brokers: str, options: Mapping[str, Any], rights: Iterable[Right], *, may_lack: bool = False
) -> list[str]:
    """Return a line for each topic or group on which this user lacks a right.

    Topics may be missing if they ``may_lack``, as before they are made.

    Raises:
        KafkaError: a broker does not answer.
    """
    client = AIOKafkaClient(bootstrap_servers=brokers, **options)
    try:
        await client.bootstrap()
        return await _missing(client, rights, may_lack=may_lack)
    except (NotImplementedError, errors.IncompatibleBrokerVersion):
        # The broker is too old for this request.
        return []
    finally:
        await client.close()


async def _missing(client: AIOKafkaClient, rights: Iterable[Right], *, may_lack: bool) -> list[str]:
    rights = list(rights)
    answer = await answer_of_any(client, _Metadata())
    topics = answer.to_object()["topics"]
    allowed = {one["topic"]: one["authorized_operations"] for one in topics if one["partitions"]}
    hidden = await _hidden(client, [one.name for one in rights if one.resource == "topic"], allowed)
    problems = []
    for right in rights:
        if right.resource == "group":
            bits = await _group_operations(client, right.name)
        elif right.name in allowed:
            # It exists, so the right to make it is not needed.
            bits = allowed[right.name] | 1 << _BITS["Create"]
        elif right.name in hidden:
            bits = 0
        elif may_lack:
            continue
        else:
            problems.append(f"topic {right.name}: missing; make it with `map apply`")
            continue
        # A number below 0 says that the broker reports no operations.
        if bits >= 0 and (lacking := [n for n in right.operations if not bits >> _BITS[n] & 1]):
            words = ", ".join(lacking)
            problems.append(f"{right.resource} {right.name}: this user may not {words}; allow it")
    return problems


async def _hidden(
    client: AIOKafkaClient, names: list[str], shown: Mapping[str, int]
) -> frozenset[str]:
    """Return the topics that this user may not see, whether they exist or not.

    A list of all topics leaves them out; asked for by name, a broker says that it refuses.
    """
    absent = [name for name in names if name not in shown]
    if not absent:
        return frozenset()
    answer = await answer_of_any(client, _Metadata(absent))
    return frozenset(
        one["topic"]
        for one in answer.to_object()["topics"]
        if errors.for_code(one["error_code"]) is errors.TopicAuthorizationFailedError
    )


async def _group_operations(client: AIOKafkaClient, group: str) -> int:
    """Return the operations that are allowed on a group, below 0 if no broker reports them."""
    try:
        node = await client.coordinator_lookup(CoordinationType.GROUP, group)
        answer: Any = await client.send(node, _Groups(group))
    except errors.GroupAuthorizationFailedError:
        return 0
    except errors.KafkaError:
        # Only its coordinator reports them; if it is away, a missing right shows at the join.
        return -1
    (found,) = answer.groups
    if errors.for_code(found[0]) is errors.GroupAuthorizationFailedError:
        return 0
    return int(found[-1])
