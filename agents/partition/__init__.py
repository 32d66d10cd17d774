"""One owned partition: claim, recovery, deltas, emission to sinks, eviction; and all of them."""
