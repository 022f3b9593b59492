"""Baselines of the same network, data split, prior and training cost as the posterior."""

from training.baselines.catalogue import MethodError, fit, label
from training.baselines.judge import member_logits, run_baselines

__all__ = ["MethodError", "fit", "label", "member_logits", "run_baselines"]
