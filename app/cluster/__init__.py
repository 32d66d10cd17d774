"""Kafka and Cassandra for a map: topics, rights, histories, groups, and resets."""
