"""Input: synthetic loads with a known outcome, recorded events, and own files of events."""
