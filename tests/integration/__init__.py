"""Tests that run real processes, brokers and nodes."""
