"""Offline half: draw an ensemble of weights from the Bayesian posterior, and publish it."""
