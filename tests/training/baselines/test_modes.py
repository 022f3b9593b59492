from __future__ import annotations

import numpy as np
import pytest

from training.baselines.ensemble import Ensemble
from training.baselines.modes import alone, networks
from training.recipe import Recipe


@pytest.mark.parametrize(("members", "epochs"), [(2, 8), (4, 4), (16, 1), (99, 1)])
def test_networks_cost_as_many_epochs_as_the_chains(
    tiny: Recipe, members: int, epochs: int
) -> None:
    """The tiny recipe has 2 chains of 8 epochs."""
    sampler = networks(tiny, members).sampler
    assert (sampler.chains, sampler.warm_start_epochs) == (members, epochs)
    assert sampler.burn_in_epochs == sampler.sampling_epochs == 0


def test_an_estimate_alone_costs_its_share() -> None:
    ensemble = Ensemble(np.zeros((4, 3), np.float32), epochs=20, seconds=6.0)
    single = alone(ensemble)
    assert (single.epochs, single.seconds, single.together) == (5, 1.5, False)
    assert single.positions is ensemble.positions
