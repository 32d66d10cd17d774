"""The contents of Kafka records beside journals: chunks, heartbeats, letters, and sealed bytes."""
