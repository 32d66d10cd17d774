"""What is known: core rules, layer tables, journal, local store, archive."""
