"""The command line: one file a command, named in ``app.__main__``."""
