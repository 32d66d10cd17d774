"""Input for tests of a map: synthetic loads with a known outcome, and recorded events."""
