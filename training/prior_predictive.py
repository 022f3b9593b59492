"""What the prior believes before it has seen data: predictions of networks drawn from it."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.uncertainty import softmax, summarise
from training.posterior import Posterior

ONE_CLASS = 0.9
CHUNK = 500  # images of a forward pass


def prior_predictive(
    posterior: Posterior, images: Tensor, draws: int, generator: torch.Generator
) -> dict[str, float]:
    """Figures of networks θ ~ p(θ), on real images that need no labels.

    A prior over weights is a prior over functions, and a poor one can say: every image is of the
    same class, which class being the only thing left open (Wenzel et al. 2020, arXiv 2002.02405).
    How to read it:

    max_probability: mean over draws and images of the largest probability; 1/K knows nothing.
    entropy: mean entropy of a single draw over ln K. Near 0: each draw is sure of everything.
    mutual_information: share of the average prediction's entropy that is disagreement between
        draws. Near 1: a vague prior over confident functions; near 0: vague functions.
    one_class: share of draws that give more than 90 % of the images the same most probable class.
        Near 1: the prior holds that images do not matter.
    logit_std: root mean square over draws, images and classes of the logits less their mean over
        classes. 1 is mild; 10 is sure.

    Args:
        posterior: whose prior and network.
        images: [n, C, H, W], prepared.
        draws: M of them, at least 2.
        generator: of the draws.

    Returns:
        These five, and "draws" and "images".

    Raises:
        ValueError: fewer than 2 draws, or no images.
    """
    if draws < 2 or len(images) == 0:
        raise ValueError(f"needs 2 draws and an image, got {draws} and {len(images)}")
    logits = np.stack([_logits(posterior, images, generator) for _ in range(draws)], axis=1)
    classes = logits.shape[2]
    together, single = summarise(logits), softmax(logits)
    most_probable = single.argmax(axis=2)[..., None] == np.arange(classes)
    largest_share = most_probable.mean(axis=0).max(axis=1)
    centred = logits - logits.mean(axis=2, keepdims=True)
    return {
        "draws": draws,
        "images": len(images),
        "max_probability": float(single.max(axis=2).mean()),
        "entropy": float(together.expected_entropy.mean() / math.log(classes)),
        "mutual_information": float(
            together.mutual_information.mean() / together.predictive_entropy.mean()
        ),
        "one_class": float((largest_share > ONE_CLASS).mean()),
        "logit_std": float(np.sqrt(np.square(centred, dtype=np.float64).mean())),
    }


@torch.no_grad()
def _logits(
    posterior: Posterior, images: Tensor, generator: torch.Generator
) -> NDArray[np.float32]:
    """Logits [n, K] of one draw from the prior."""
    weights = posterior.prior.draw(generator)
    result: NDArray[np.float32] = torch.cat(
        [posterior.logits(weights, part) for part in images.split(CHUNK)]
    ).numpy()
    return result
