"""Proofs of a group: what members say when they join, and the leader's plan, signed by workers.

Kafka lets whoever may read the group join it, say what it likes, and even lead it. So a join is
signed over the group and the member's number, a plan over the group and its generation, with the
key between workers (``peer_secret``). Who has no key gets no partition and is believed nothing.

A worker has no number yet when it joins first, so its first proof has none. Whoever reads the group
can repeat it, but not the next one, which has; of two members with one boot the one with its number
in its proof is the worker. A map that is planned for one generation is of no use in another.

Anybody may join with any bytes, and megabytes of empty lists and maps take gigabytes and minutes to
read. So the proof of a join is checked over its bytes as they are, and nothing is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from app.trust.proof import PeerKey

_PROOF_FIELD = b"\xa5proof\xd9\x40"
"""How MessagePack has the name of the last field, and begins its value of so many digits."""

_PROOF_DIGITS = 64
_MAP_16 = 0xDE
"""What begins a map of more fields than fit into that byte; from 0x80 on it has them itself."""

_FEW_MAX = 15

_UNSIGNED = "is not signed by a worker of this group, with the same peer_secret or web_token"


class GroupProof:
    """Signs and checks for one group.

    Args:
        group: the group.
        key: signs; None where no secret is set: then nothing is signed, and everybody believed.
    """

    def __init__(self, group: str, key: PeerKey | None = None) -> None:
        self._group = group
        self._key = key

    def join(self, said: msgspec.Struct, number: str) -> bytes:
        """Return what a member says of itself, signed.

        Args:
            said: what it says.
            number: its number in the group; empty before its first join.
        """
        return self._signed([msgspec.to_builtins(said)], self._of_join(number), many=False)

    def plan(self, shares: Sequence[msgspec.Struct], generation: int) -> bytes:
        """Return a leader's plan, signed."""
        return self._signed(msgspec.to_builtins(shares), self._of_plan(generation), many=True)

    def is_joined(self, data: bytes, number: str) -> bool:
        """Return whether a worker said this under its number."""
        if self._key is None or (apart := _apart(data)) is None:
            return False
        content, proof = apart
        return self._key.is_proved(self._of_join(number), content, proof)

    def why_stranger(self, data: bytes, number: str) -> str:
        """Return why who says this is no worker; empty for a worker."""
        if self._key is None or self.is_joined(data, number) or self.is_joined(data, ""):
            return ""
        return f"what it joined with {_UNSIGNED}"

    def why_no_plan(self, data: bytes, generation: int) -> str:
        """Return why a plan must not be used; empty if it may."""
        if self._key is None or self._is_planned(data, self._of_plan(generation)):
            return ""
        return f"the plan {_UNSIGNED}"

    def _of_join(self, number: str) -> str:
        return f"join {self._group!r} {number!r}"

    def _of_plan(self, generation: int) -> str:
        return f"plan {self._group!r} {generation}"

    def _signed(self, parts: list[dict[str, Any]], about: str, *, many: bool) -> bytes:
        for part in parts:
            assert "proof" not in part, "the name of the signature"
        if self._key is not None:
            proof = self._key.prove(about, msgspec.msgpack.encode(parts))
            for part in parts:
                part["proof"] = proof
        return msgspec.msgpack.encode(parts if many else parts[0])

    def _is_planned(self, data: bytes, about: str) -> bool:
        """Return whether all parts are signed together, fields of later versions among them."""
        assert self._key is not None
        try:
            parts = msgspec.msgpack.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        if not isinstance(parts, list) or not parts:
            return False
        if not all(isinstance(part, dict) for part in parts):
            return False
        proofs = {str(part.pop("proof", "")) for part in parts}
        if len(proofs) != 1:
            return False
        return self._key.is_proved(about, msgspec.msgpack.encode(parts), proofs.pop())


def _apart(data: bytes) -> tuple[bytes, str] | None:
    """Return what a join is signed over, and its proof, which is its last field; None without."""
    fields, proof = data[:-_PROOF_DIGITS], data[-_PROOF_DIGITS:]
    if not fields.endswith(_PROOF_FIELD):
        return None
    if data[0] == _MAP_16:
        count, begin = int.from_bytes(data[1:3]), 3
    else:
        count, begin = data[0] - 0x80, 1
    if not 0 < count <= (0xFFFF if begin > 1 else _FEW_MAX):
        return None
    count -= 1
    few = count <= _FEW_MAX
    head = bytes([0x80 + count]) if few else bytes([_MAP_16]) + count.to_bytes(2)
    content = b"\x91" + head + fields[begin : -len(_PROOF_FIELD)]
    return content, proof.decode("ascii", "replace")
