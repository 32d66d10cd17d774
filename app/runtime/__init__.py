"""One worker process: its parts put together on a Faust App, its status and metrics."""
