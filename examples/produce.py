"""Write events to a source's topic; events of equal keys go to one partition, as the map says.

Start `python -m app try examples/shop.toml examples/shop.ndjson`, which prints the address of its
broker. Then, with `pip install "treasure-map[feed]"`:

    python examples/produce.py [BROKERS]
"""

import asyncio
import json
import sys

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

TOPIC = "till.raw"


async def main(brokers: str = "127.0.0.1:9092") -> None:
    """Write a sale an hour in each city, from eleven o'clock on."""
    async with AIOKafkaProducer(bootstrap_servers=brokers, acks="all") as producer:
        for hour in range(11, 18):
            for city, cents in (("Bonn", 300), ("Graz", 450)):
                at = f"2026-03-01T{hour}:00:00Z"
                event = {"type": "sale", "at": at, "shop": {"city": city}, "cents": cents}
                await producer.send(TOPIC, json.dumps(event).encode(), key=city.encode())
        await producer.flush()
    print(f"wrote 14 sales to {TOPIC}")


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except KafkaError as error:
        sys.exit(f"cannot write to {TOPIC}: {error}")
