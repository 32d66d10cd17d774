"""Settings, and the options of Kafka's and Cassandra's clients that follow."""
