"""Tests of `app/host/`."""
