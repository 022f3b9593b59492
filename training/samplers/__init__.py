"""Samplers of the posterior, one file a method, all through `protocol.Sampler`."""

from training.samplers.baoab import BAOAB
from training.samplers.constant_sgd import ConstantSGD
from training.samplers.hmc import HMC
from training.samplers.mala import MALA
from training.samplers.protocol import Info, Sampler, State, Target
from training.samplers.psgld import PSGLD
from training.samplers.sghmc import SGHMC
from training.samplers.sgld import SGLD

__all__ = [
    "BAOAB",
    "HMC",
    "MALA",
    "PSGLD",
    "SGHMC",
    "SGLD",
    "ConstantSGD",
    "Info",
    "Sampler",
    "State",
    "Target",
]
