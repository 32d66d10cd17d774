"""Tests of `tables/`."""
