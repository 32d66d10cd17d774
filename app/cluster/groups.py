"""Consumer groups: whether one exists, its members, and its end.

Every function raises BrokersAwayError if a broker does not answer.
"""

from __future__ import annotations

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import DeleteGroupsRequest

from app.cluster.admin import Options, admin_of
from app.kafka.brokers import connect_error
from tables.model.errors import TreasureMapError

_NO_SUCH_GROUP = 69


async def members_of(brokers: str, group: str, options: Options | None = None) -> list[str]:
    """Return the clients that are in a consumer group now, with their addresses."""
    async with admin_of(brokers, options, f"cannot read group {group}") as admin:
        answers = await admin.describe_consumer_groups([group])
    # Of a group: error, name, state, protocol's kind, protocol, members; of those: id, client id,
    # and address, which the embedded broker leaves out.
    members = [member for answer in answers for found in answer.groups for member in found[5]]
    return sorted(_member(*member[:3]) for member in members)


async def group_exists(brokers: str, group: str, options: Options | None = None) -> bool:
    """Return whether brokers know a consumer group, with members or without."""
    async with admin_of(brokers, options, f"cannot read group {group}") as admin:
        return group in {name for name, *_ in await admin.list_consumer_groups()}


async def delete_group(brokers: str, group: str, options: Options | None = None) -> None:
    """Delete a consumer group with the positions that it has committed.

    Raises:
        TreasureMapError: a broker does not answer, or refuses, as for a group with members.
    """
    cannot = f"cannot delete group {group}"
    options = options or {}
    client = AIOKafkaClient(bootstrap_servers=brokers, **options)
    try:
        await client.bootstrap()
        node = await client.coordinator_lookup(CoordinationType.GROUP, group)
        answer = await client.send(node, DeleteGroupsRequest([group]))
    except (KafkaError, OSError, TimeoutError) as error:
        raise await connect_error(error, cannot, brokers, options) from error
    finally:
        await client.close()
    ((_, code),) = answer.results
    if code not in (0, _NO_SUCH_GROUP):
        raise TreasureMapError(
            f"{cannot}: the broker refuses: {for_code(code).__name__}; want a group without"
            " members, and the right to Delete it; see to its cause, then do it again"
        )


def _member(member_id: str, client_id: str, address: str) -> str:
    return f"{client_id or member_id} at {address.lstrip('/')}" if address else member_id
