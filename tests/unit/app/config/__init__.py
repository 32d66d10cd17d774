"""Tests of `app/config/`."""
