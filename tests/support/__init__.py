"""The shared parts of tests: maps, logs in memory, servers, worker processes."""
