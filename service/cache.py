"""Images that were settled before: opt-in, bounded, the least recently asked goes first.

An entry is found again by the bundle's digest, the policy's levels, what is asked of it, and the
digest of what was sent, so that no answer of one bundle or policy is ever given for another. What
it holds is the settled case, and an answer is made from it as from any other: a hit changes no
answer, it only spares the decoding and the members.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from models.policy import Policy
from service.cases import Case, Rule
from service.errors import GateError
from service.intake import Sent

Key = tuple[str, Policy, float | None, frozenset[str], bytes]


class CaseCache:
    """The last `size` images that were settled; with size 0 it holds nothing."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[Key, Case] = OrderedDict()

    def __len__(self) -> int:
        """Images that it holds."""
        return len(self._entries)

    def key(self, digest: str, rule: Rule, sent: Sent) -> Key | None:
        """Where an image is kept; None if it is not."""
        if not self._size:
            return None
        if isinstance(sent.content, bytes):
            kind, content = b"file", sent.content
        else:
            try:
                text = repr(sent.content)
            except RecursionError:  # lists within lists within lists: no image
                return None
            kind, content = b"item", text.encode("utf-8", "surrogatepass")
        named = blake2b(content, digest_size=32, person=kind).digest()
        return digest, rule.policy, rule.level, rule.detectors, named

    def get(self, key: Key | None) -> Case | None:
        """The settled case, if it is there."""
        if key is None or key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: Key | None, case: Case | GateError) -> None:
        """Keep a settled case with finite evidence, in place of the least recently asked."""
        if key is None or isinstance(case, GateError):
            return
        if case.evidence is None or not case.evidence.finite:
            return
        self._entries[key] = case
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
