"""Proofs between workers: requests and answers signed with a secret that never travels.

A request is signed over method, URL, hash of the body, time and nonce (HMAC-SHA256), its answer
over the same nonce and the hash of its own body. The URL is the one that the group's map has for
the asked worker, so a member that names a foreign URL there gets a signature that is of no
use elsewhere.

    Treasure-Map-Proof: 1 TIME_MS NONCE SHA256(body) HMAC
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

HEADER = "Treasure-Map-Proof"
VERSION = "1"
SKEW_S = 60.0
"""How far the clocks of two workers may be apart. Nonces are remembered for twice as long."""

_PURPOSE = b"treasure-map peer key 1"
_FORM = re.compile(r"1 (\d{1,15}) ([0-9a-f]{32}) ([0-9a-f]{64}) ([0-9a-f]{64})")


class ProofError(Exception):
    """A request or an answer does not come from a worker of this group; says why."""


class Proof(NamedTuple):
    """A signature, made or found good: its header, and the hash that the body has to have."""

    header: str
    sha256: str


class PeerKey:
    """Signs and checks requests between workers of one group, which have the same secret.

    ``own_url`` is the URL at which other workers reach this one; ``clock_s`` is the wall clock.
    """

    def __init__(self, secret: str, own_url: str, clock_s: Callable[[], float] = time.time) -> None:
        self._key = hmac.digest(secret.encode(), _PURPOSE, hashlib.sha256)
        self._own_url = own_url
        self._clock_s = clock_s
        self._nonces: dict[str, float] = {}

    def sign(self, method: str, url: str, path: str, body: bytes) -> Proof:
        """Return the proof of a request to the worker at ``url``."""
        about = f"{int(self._clock_s() * 1_000)} {secrets.token_hex(16)} {sha256(body)}"
        mac = self._request_mac(method, url + path, about)
        return Proof(f"{VERSION} {about} {mac}", about.rpartition(" ")[2])

    def check(self, method: str, path: str, header: str) -> Proof:
        """Return the proof of a request to this worker; its body has to be compared with the hash.

        Raises:
            ProofError: it is not a proof for this worker, is too old or was used before.
        """
        match = _FORM.fullmatch(header)
        if match is None:
            raise ProofError(f"want the header {HEADER} of a worker")
        time_ms, nonce, digest, mac = match.groups()
        about = f"{time_ms} {nonce} {digest}"
        if not hmac.compare_digest(mac, self._request_mac(method, self._own_url + path, about)):
            raise ProofError(
                f"the signature is wrong; want the same peer_secret, or web_token, at all workers,"
                f" and {self._own_url} as the URL of this one"
            )
        now_s = self._clock_s()
        off_s = now_s - int(time_ms) / 1_000
        if abs(off_s) > SKEW_S:
            raise ProofError(
                f"the request is {off_s:.0f} s old by this worker's clock; want clocks within"
                f" {SKEW_S:.0f} s"
            )
        self._forget(now_s)
        if nonce in self._nonces:
            raise ProofError("the request was here before; want each one signed anew")
        self._nonces[nonce] = now_s
        return Proof(header, digest)

    def sign_answer(self, proof: Proof, body: bytes) -> str:
        """Return the header of an answer to a request."""
        return self._mac(f"answer {VERSION} {proof.header} {sha256(body)}")

    def check_answer(self, proof: Proof, header: str, body: bytes) -> None:
        """Check an answer to a request that this worker has signed.

        Raises:
            ProofError: it is not signed by a worker of this group.
        """
        if not hmac.compare_digest(header.encode("utf-8", "replace"),
                                   self.sign_answer(proof, body).encode()):  # fmt: skip
            raise ProofError(
                "its answer is not signed by a worker of this group; want the same peer_secret, or"
                " web_token, at all workers"
            )

    def prove(self, about: str, content: bytes) -> str:
        """Return the proof of a worker's message to its group; ``about`` names its purpose."""
        return self._mac(f"group {VERSION} {about} {sha256(content)}")

    def is_proved(self, about: str, content: bytes, proof: str) -> bool:
        """Return whether a worker of the group signed this message."""
        return hmac.compare_digest(
            proof.encode("utf-8", "replace"), self.prove(about, content).encode()
        )

    def _request_mac(self, method: str, url: str, about: str) -> str:
        return self._mac(f"request {VERSION} {method} {url} {about}")

    def _mac(self, text: str) -> str:
        return hmac.digest(self._key, text.encode(), hashlib.sha256).hex()

    def _forget(self, now_s: float) -> None:
        """Drop the nonces that are too old to pass; they are in the order of their arrival."""
        for nonce, at_s in list(self._nonces.items()):
            if at_s > now_s - 2 * SKEW_S:
                break
            del self._nonces[nonce]


def sha256(body: bytes) -> str:
    """Return the hash of a body, in hexadecimal."""
    return hashlib.sha256(body).hexdigest()
