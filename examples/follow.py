"""Follow a layer that is published: each version of its closed cells once, straight from Kafka.

The layer has `publish = true` in its map. With `pip install "treasure-map[feed]"`:

    python examples/follow.py TOPIC [BROKERS]

The topic is `MAP.feed.LAYER`, such as `flights.feed.departures_hour`.
"""

import sys

from treasure_map import FollowFailedError, follow


def main(topic: str, brokers: str = "127.0.0.1:9092") -> None:
    """Print the cells up to the present end of the feed; without `to_end` it goes on for ever."""
    latest = {}
    with follow(topic, brokers, to_end=True) as cells:
        for cell in cells:
            # A later version is the whole cell again: it replaces the one before.
            latest[cell.window_start, *cell.key.values()] = cell.measures
    for (start, *key), measures in sorted(latest.items()):
        print(start, *key, measures["count"])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except FollowFailedError as error:
        sys.exit(str(error))
