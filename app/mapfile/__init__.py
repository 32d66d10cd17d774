"""The map file: TOML into a ``Map``, with every problem in it at once."""
