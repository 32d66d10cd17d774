"""The archive in Cassandra, for any number of workers."""
