"""What a map needs of Kafka and Cassandra: topics, rights, histories, and how it starts over."""
