"""Tests of `app/kafka/`."""
