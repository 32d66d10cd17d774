"""The demo: a broker in memory, one worker, the flights, and a check of all that came out."""
