"""Tests of `agents/partition/`."""
