"""Tests of `treasure_map/`."""
