"""Settings, and what the clients of Kafka and Cassandra are given of them."""
