"""Broker in memory and one worker: the demo with its check, and own files of events."""
