"""The command ``treasure-map``: it starts the worker's program if that is installed."""

from __future__ import annotations

from treasure_map.installed import require_worker


def main() -> None:
    """Run the worker's command line, or name the packages that are missing."""
    require_worker()
    from app.__main__ import main as run  # noqa: PLC0415 - its packages are checked first

    run()


if __name__ == "__main__":
    main()
