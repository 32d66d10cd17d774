"""Kafka and Cassandra for a map: topics, rights, histories, and starting over."""
