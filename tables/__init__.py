"""What is known: core rules, layer tables, journal, local store, archive. Imports nothing above it."""
