"""What tests share: maps, logs in memory, servers, worker processes."""
