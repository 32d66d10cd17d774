"""The machine under a process: children, memory, a stalled loop, files that change, terminals."""
