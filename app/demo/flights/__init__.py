"""Every flight that left New York in 2013, as a stream of events."""
