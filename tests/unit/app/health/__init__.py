"""Tests of `app/health/`."""
