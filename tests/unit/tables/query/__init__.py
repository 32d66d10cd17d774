"""Tests of `tables/query/`."""
