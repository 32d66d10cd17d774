"""Real processes and servers that are killed, stopped and cut off, and a check of every row."""
