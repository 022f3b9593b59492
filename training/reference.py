"""A CIFAR-10 bundle beside the posterior itself, as full-batch HMC samples it.

The reference is that of the NeurIPS 2021 competition on approximate inference: predictives of HMC
at T = 1 for a ResNet-20 with filter response normalisation and a Gaussian prior of variance 1/5,
3 chains, learned on 40,960 images without augmentation (Izmailov et al. 2021, arXiv 2104.14421;
repository izmailovpavel/neurips_bdl_starter_kit, which states no licence: for research use). Its
authors' HMC agrees with itself, chain against chain, on 94.0 % at a total variation of 0.074.

A network of another architecture has another posterior: the comparison then measures both.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import GRAPH, Bundle
from models.preprocessing import prepare
from models.uncertainty import Array, entropy, softmax
from training import metrics
from training.agreement import agreement, total_variation
from training.data import DataError, Dataset, load
from training.data.store import Store
from training.export import member_outputs, session

ACCURACY, NLL = 0.9144, 0.2773
DIGIT = 5e-5  # half a unit of the last digit that is published


class ComparisonError(ValueError):
    """A bundle that the reference says nothing about."""


def compare_hmc(bundle: Bundle, data_dir: Path, threads: int) -> dict[str, Any]:
    """Agreement, total variation, and both sides' quality on the CIFAR-10 test images.

    Returns:
        `agreement`, `total_variation`, and for `bundle` and `hmc` their accuracy, NLL (nats), ECE
        over 15 bins and mean predictive entropy (nats).

    Raises:
        ComparisonError: the bundle does not have the classes of CIFAR-10 in their order.
        DataError: the images or the reference are missing or damaged.
    """
    test = load("cifar10", "test", data_dir)
    check(bundle, test.classes)
    reference = read_reference(data_dir, test)
    prepared, _ = prepare(test.images, bundle.manifest.input)
    ours = predictive(bundle.path / GRAPH, prepared, threads)
    return {
        "agreement": agreement(ours, reference),
        "total_variation": total_variation(ours, reference),
        "bundle": score(ours, test),
        "hmc": score(reference, test),
    }


def check(bundle: Bundle, classes: tuple[str, ...]) -> None:
    """Refuse a bundle of other classes, or of the same in another order.

    Raises:
        ComparisonError: it is one.
    """
    if bundle.manifest.labels != classes:
        raise ComparisonError(
            f"{bundle.path}: the reference is for CIFAR-10, classes {', '.join(classes)} in this "
            f"order; this bundle has {', '.join(bundle.manifest.labels)}"
        )


def predictive(graph: Path, prepared: NDArray[np.float32], threads: int) -> Array:
    """Mean over members of probabilities, [n, K], of prepared images [n, C, H, W]."""
    engine = session(graph, threads)
    parts = np.array_split(prepared, max(1, len(prepared) // 1000))
    logits = (member_outputs(engine, 1, part).logits for part in parts)
    means: list[Array] = [softmax(values).mean(axis=1) for values in logits]
    return np.concatenate(means)


def read_reference(data_dir: Path, test: Dataset) -> Array:
    """Predictives of HMC for the test images in their canonical order, float64 [10000, 10].

    They are read from `hmc_cifar10/probs.npz` (array `probs`, canonical order) if it is there, and
    otherwise from the published `probs.csv`, which is downloaded if it is missing.

    Raises:
        DataError: no such file and no download, or the file does not score the accuracy of .9144
            and the NLL of .2773 that the reference has, in this order.
    """
    file = data_dir / "hmc_cifar10" / "probs.npz"
    if file.exists():
        try:
            with np.load(file, allow_pickle=False) as archive:
                probabilities: Array = archive["probs"].astype(np.float64)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{file} is not the reference ({error}): delete it") from error
    else:
        file = Store(data_dir).get("hmc_cifar10/probs.csv")
        probabilities = reorder(np.loadtxt(file))
    if probabilities.shape != (len(test), len(test.classes)):
        raise DataError(f"{file} holds shape {probabilities.shape}, not the reference: replace it")
    figures = score(probabilities, test)
    if not (abs(figures["accuracy"] - ACCURACY) < DIGIT and abs(figures["nll"] - NLL) < DIGIT):
        raise DataError(
            f"{file} scores accuracy {figures['accuracy']:.4f} and NLL {figures['nll']:.4f}, the "
            f"reference has {ACCURACY} and {NLL}: replace it"
        )
    return probabilities


def reorder(published: Array) -> Array:
    """The rows [n, K] of the published file in the canonical order of the test images.

    They are published in the order of md5(b"test" + str(index)) over the canonical index.
    """

    def key(index: int) -> bytes:
        return hashlib.md5(b"test" + str(index).encode(), usedforsecurity=False).digest()

    canonical: Array = np.empty_like(published)
    canonical[sorted(range(len(published)), key=key)] = published
    return canonical


def score(probabilities: Array, test: Dataset) -> dict[str, float]:
    """Accuracy, NLL (nats), ECE over 15 bins and mean predictive entropy (nats), of p [n, K]."""
    return {
        "accuracy": metrics.accuracy(probabilities, test.labels),
        "nll": metrics.negative_log_likelihood(probabilities, test.labels),
        "ece": metrics.calibration_error(probabilities, test.labels),
        "predictive_entropy": float(entropy(probabilities).mean()),
    }
