"""Proofs of a group: joins of members and the leader's plan, signed by workers.

Kafka lets whoever may read the group join it, send any bytes, and even lead it. So a join is
signed over the group and the member's number, a plan over the group and its generation, with the
key between workers (``peer_secret``). A member without the key gets no partition, and
nothing that it says is believed.

A worker has no number yet when it joins first, so its first proof has none. Whoever reads the group
can repeat it, but not the next one, which has; of two members with one boot the one with its number
in its proof is the worker. A map that is planned for one generation is of no use in another.

Anybody may join with any bytes, and megabytes of empty lists and maps take gigabytes and minutes to
read. So a proof is beside the bytes that it signs, and they are checked before they are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from app.trust.proof import PeerKey

Content = TypeVar("Content")

_UNSIGNED = "is not signed by a worker of this group, with the same peer_secret or web_token"


class _Signed(msgspec.Struct, frozen=True, array_like=True):
    """A join or a plan, as MessagePack has it, and its proof; that is empty if nobody signs."""

    content: bytes
    proof: str


class GroupProof:
    """Signs and checks for one group; without a key nothing is signed and everybody is trusted."""

    def __init__(self, group: str, key: PeerKey | None = None) -> None:
        self._group = group
        self._key = key

    def join(self, said: msgspec.Struct, number: str) -> bytes:
        """Return a member's description of itself, signed for its number; empty before it joins."""
        return self._signed(said, self._of_join(number))

    def plan(self, shares: Sequence[msgspec.Struct], generation: int) -> bytes:
        """Return a leader's plan, signed."""
        return self._signed(shares, self._of_plan(generation))

    def is_joined(self, data: bytes, number: str) -> bool:
        """Return whether a worker said this under its number."""
        return self._is_proved(data, self._of_join(number))

    def why_stranger(self, data: bytes, number: str) -> str:
        """Return why the member that says this is not a worker; empty for a worker."""
        if self._key is None or self.is_joined(data, number) or self.is_joined(data, ""):
            return ""
        return f"its join {_UNSIGNED}"

    def why_no_plan(self, data: bytes, generation: int) -> str:
        """Return why a plan must not be used; empty if it may."""
        if self._key is None or self._is_proved(data, self._of_plan(generation)):
            return ""
        return f"the plan {_UNSIGNED}"

    def _of_join(self, number: str) -> str:
        return f"join {self._group!r} {number!r}"

    def _of_plan(self, generation: int) -> str:
        return f"plan {self._group!r} {generation}"

    def _signed(self, said: object, about: str) -> bytes:
        content = msgspec.msgpack.encode(said)
        proof = "" if self._key is None else self._key.prove(about, content)
        return msgspec.msgpack.encode(_Signed(content, proof))

    def _is_proved(self, data: bytes, about: str) -> bool:
        if self._key is None:
            return False
        try:
            signed = _decoded(data, _Signed)
        except ValueError:
            return False
        return self._key.is_proved(about, signed.content, signed.proof)


def content_of(data: bytes, kind: type[Content]) -> Content:
    """Return the content of a join or a plan, signed or not.

    Raises:
        ValueError: it cannot be read.
    """
    return _decoded(_decoded(data, _Signed).content, kind)


def _decoded(data: bytes | None, kind: type[Content]) -> Content:
    try:
        # A member that says nothing of itself has null there.
        return msgspec.msgpack.decode(data or b"", type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from error
