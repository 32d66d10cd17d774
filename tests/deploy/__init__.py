"""Tests of the image, the compose file, the manifest and the unit."""
