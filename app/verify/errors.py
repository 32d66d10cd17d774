"""Reasons for which a verification is not possible."""

from __future__ import annotations

from tables.model.errors import TreasureMapError


class VerifyError(TreasureMapError):
    """Something that cannot be verified, with the reason."""


class RefusedError(VerifyError):
    """A worker refuses to answer; asking again does not help."""
