"""Tests of `app/mapfile/`."""
