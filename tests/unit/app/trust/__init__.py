"""Tests of `app/trust/`."""
