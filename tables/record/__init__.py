"""What stands in Kafka records beside journals: chunks, heartbeats, letters, and sealed bytes."""
