"""Tests of `tables/measures/`."""
