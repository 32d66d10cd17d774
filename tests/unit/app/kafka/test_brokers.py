"""Brokers that do not answer at a start: which are asked again, and for how long."""

from __future__ import annotations

import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    TopicAuthorizationFailedError,
)

import app.kafka.brokers
from app.kafka.brokers import BrokersAwayError, connect_error, patiently
from tables.model.errors import TreasureMapError


@pytest.mark.parametrize(
    ("error", "is_waited_for"),
    [
        (NodeNotReadyError("node id 2"), True),
        (KafkaError("Unable to get cluster metadata over all known brokers"), True),
        (KafkaConnectionError("Connection at a:9092 closed"), True),
        (KafkaConnectionError("Unable to bootstrap from [('a', 9092)]"), False),
        (TopicAuthorizationFailedError("t"), False),
    ],
)
async def test_what_some_brokers_answer_is_waited_for(
    error: KafkaError, is_waited_for: bool
) -> None:
    """A setting that names nobody, or a right that is missing, ends a worker at once."""
    told = await connect_error(error, "cannot connect to Kafka", "127.0.0.1:1", {})
    assert isinstance(told, BrokersAwayError) is is_waited_for
    assert str(told).startswith("cannot connect to Kafka: ")


async def test_a_step_is_done_again_while_brokers_are_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says it once; another error, or the end of patience, comes through."""
    monkeypatch.setattr(app.kafka.brokers, "_ASK_AGAIN_S", 0.001)
    errors: list[Exception] = [BrokersAwayError("one is away")] * 3

    async def step() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    assert await patiently(step) == "done"
    assert [one.message for one in caplog.records] == ["one is away; they are asked again for 60 s"]
    errors = [TreasureMapError("refused")]
    with pytest.raises(TreasureMapError, match="refused"):
        await patiently(step)
    errors = [BrokersAwayError("one is away")] * 9
    with pytest.raises(BrokersAwayError):
        await patiently(step, patience_s=-1)
    assert len(errors) == 8
