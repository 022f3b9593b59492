"""Images of classes that a recipe knows, seen otherwise than in training."""

from __future__ import annotations

from functools import partial

import numpy as np

from training.data import Dataset, from_arrays
from training.run import Run
from training.views import add_noise, blur, occlude, rotate

SHIFTED = 2_000
SEED = 0

DEGREES = (0, 15, 30, 45, 60, 75, 90)
NOISE = (0.1, 0.2, 0.4)
BLUR = (0.04, 0.08, 0.12)
OCCLUSION = (0.25, 0.4, 0.55)

VIEWS = {
    **{f"{degrees}°": partial(rotate, degrees=degrees) for degrees in DEGREES},
    **{f"noise {std}": partial(add_noise, std=std, seed=SEED) for std in NOISE},
    **{f"blur {std}": partial(blur, std=std) for std in BLUR},
    **{f"hidden {side}": partial(occlude, side=side, seed=SEED) for side in OCCLUSION},
}


def shifted_sets(run: Run) -> dict[str, Dataset]:
    """Shifted sets with their labels, by name: the recipe's own (`data.shift`), and test images

    D°        turned by 0, 15, 30, 45, 60, 75 or 90 degrees
    noise S   with Gaussian noise of standard deviation .1, .2 or .4 of the range of a pixel
    blur S    blurred by a Gaussian of standard deviation .04, .08 or .12 of the height
    hidden S  with a square of background of side .25, .4 or .55 of the height at a random place

    of the same random 2,000 test images, or of all if there are fewer.
    """
    test = run.problem.test
    order = np.random.default_rng(SEED).permutation(len(test))
    chosen = test.select(order[:SHIFTED])
    views = {
        name: from_arrays(view(chosen.images), chosen.labels, chosen.classes, name=name)
        for name, view in VIEWS.items()
    }
    return views | {name: run.foreign(name) for name in run.recipe.data.shift}
