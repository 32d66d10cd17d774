"""The rules of a worker in plain Python, one event at a time."""
