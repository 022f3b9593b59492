"""Samplers of the posterior, one file a method."""

from training.samplers import sgld

__all__ = ["sgld"]
