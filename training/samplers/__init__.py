"""Samplers of the posterior, one file a method, all through `protocol.Sampler`."""

from training.samplers.protocol import Info, Sampler, State, Target
from training.samplers.sgld import SGLD

__all__ = ["SGLD", "Info", "Sampler", "State", "Target"]
