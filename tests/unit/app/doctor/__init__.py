"""Tests of `app/doctor/`."""
