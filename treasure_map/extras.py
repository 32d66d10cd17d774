"""Extras of the distribution: packages that only some users need, and how to install them."""

from __future__ import annotations


class MissingExtraError(ImportError):
    """A feature needs a package that is not installed.

    Attributes:
        extra: the extra of the distribution that brings the package.
    """

    def __init__(self, cannot: str, extra: str, error: ImportError) -> None:
        self.extra = extra
        super().__init__(
            f"{cannot}: {error}; want the packages of the extra {extra}; {install(extra)}",
            name=error.name,
        )


def install(extra: str) -> str:
    """Return the instruction that installs the packages of an extra."""
    return f'run: pip install "treasure-map[{extra}]"'
