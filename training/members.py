"""Which posterior samples are served."""

from __future__ import annotations

from models.manifest import Members


def thin(count: int, chains: int, samples: int, group: int) -> Members:
    """M members from C chains of S samples: equally spaced in each chain, chains interleaved.

    Member m comes from chain m mod C, so that any first few members span the chains.

    Raises:
        ValueError: M exceeds C S.
    """
    if count > chains * samples:
        raise ValueError(f"{count} members exceed {chains} chains × {samples} samples")
    shares = [count // chains + (chain < count % chains) for chain in range(chains)]
    order = [(member % chains, member // chains) for member in range(count)]
    return Members(
        count=count,
        group=min(group, count),
        chains=tuple(chain for chain, _ in order),
        samples=tuple((turn + 1) * samples // shares[chain] - 1 for chain, turn in order),
    )
