"""The only door to aiokafka: the group, fetches, appends, and why a broker cannot be reached."""
