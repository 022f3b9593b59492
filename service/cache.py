"""Evidence on images that were seen before: opt-in, bounded, the least recently asked goes first.

An entry is found again by the bundle's digest, the policy's levels, and the digest of the prepared
image, so that no answer of one bundle or policy is ever given for another. What it holds is the
evidence itself, and an answer is made from it as from any other: a hit changes no answer, it only
spares the members.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from models.policy import Policy
from service.cases import Rule
from service.evidence import Evidence, Floats

Key = tuple[str, Policy, float | None, bytes]


class EvidenceCache:
    """Evidence on the last `size` images; with size 0 it holds nothing."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[Key, Evidence] = OrderedDict()

    def __len__(self) -> int:
        """Images that it holds."""
        return len(self._entries)

    def key(self, digest: str, rule: Rule, image: Floats) -> Key | None:
        """Where the evidence on a prepared image is kept; None if nothing is."""
        if not self._size:
            return None
        return digest, rule.policy, rule.level, blake2b(image.tobytes(), digest_size=32).digest()

    def get(self, key: Key | None) -> Evidence | None:
        """The evidence, if it is there."""
        if key is None or key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: Key | None, evidence: Evidence) -> None:
        """Keep finite evidence, in place of the least recently asked."""
        if key is None or not evidence.finite:
            return
        self._entries[key] = evidence
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
