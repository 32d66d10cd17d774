"""The archive of compacted layers: one protocol, embedded or in Cassandra, with a cache before."""
