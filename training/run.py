"""A run directory, and the stages that fill it; each can be repeated on its own.

recipe.json            the recipe, as read: a directory belongs to one recipe
chains/NN.safetensors  checkpoints and samples                     sample
diagnostics.json       the sampler's verdict                       diagnose
members.json           which samples are served                    diagnose
bundle/                graph, weights                              export
bundle/calibration.npz detectors, their scores of held-out images  calibrate
detection.json         which detectors are fused, and why          calibrate
certificates.json      what is proved, and at which probability    calibrate
prediction_sets.json   their score and threshold                   calibrate
evaluation.json        figures on the test and unfamiliar sets     evaluate
places.npz             how ambiguous and unfamiliar images are     evaluate
bundles/NAME/VERSION/  the published bundle                        publish
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from models import bundle as bundles
from models.calibration import Calibration
from models.detectors import Detectors
from models.manifest import (
    AgreementSpec,
    CalibrationSpec,
    CertificateSpec,
    DataSource,
    Manifest,
    Members,
    NetworkSpec,
    PosteriorSpec,
    PredictionSetSpec,
    Verdict,
)
from models.outputs import Ensemble
from models.policy import Policy
from models.preprocessing import prepare
from training import chains, data, detection, export, pool, report
from training.ambiguous import ambiguous
from training.apart import ambiguity, place
from training.calibrate import calibrate, fit_sets, stored
from training.certify import certify_policies
from training.data import Dataset
from training.evaluate import Answers, evaluate
from training.members import curves, select, thin
from training.prior_predictive import prior_predictive
from training.problem import Problem, formulate, source
from training.recipe import Recipe
from training.samples import Samples
from training.settling import agree
from training.verdict import diagnose

GOLDEN_IMAGES = 16
PARITY_IMAGES = 256
PRIOR_IMAGES = 500
PRIOR_DRAWS = 32
LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "torch")


class RunError(Exception):
    """A stage that cannot be done; the message says which stage to run first, or what to change."""


@dataclass(frozen=True)
class Run:
    """One recipe in one directory.

    Attributes:
        recipe: the recipe.
        path: the run directory.
        data_dir: where data sets are looked for.
    """

    recipe: Recipe
    path: Path
    data_dir: Path

    @classmethod
    def create(cls, recipe: Recipe, path: Path, data_dir: Path) -> Run:
        """Start a run, or continue the one in `path`.

        Raises:
            RunError: `path` belongs to another recipe.
        """
        file = path / "recipe.json"
        if file.exists() and _recipe(file) != recipe:
            raise RunError(f"{path} belongs to another recipe (see {file}): use another --out")
        path.mkdir(parents=True, exist_ok=True)
        run = cls(recipe, path, data_dir)
        run.write(file.name, recipe.model_dump(mode="json"))
        return run

    @classmethod
    def open(cls, path: Path, data_dir: Path) -> Run:
        """Open an existing run directory.

        Raises:
            RunError: there is none.
        """
        file = path / "recipe.json"
        if not file.exists():
            raise RunError(f"{path}: no run here: start one with `sample` or `run`")
        return cls(_recipe(file), path, data_dir)

    @cached_property
    def problem(self) -> Problem:
        """The recipe with its data."""
        return formulate(self.recipe, self.data_dir)

    @cached_property
    def results(self) -> list[chains.ChainResult]:
        """The finished chains."""
        return [
            chains.read_result(self.path, chain, self.problem)
            for chain in range(self.recipe.sampler.chains)
        ]

    @cached_property
    def samples(self) -> Samples:
        """What the finished chains kept."""
        return Samples.of(self.problem, self.results)

    @property
    def staging(self) -> Path:
        """Files of the bundle to be."""
        return self.path / "bundle"

    @property
    def published(self) -> Path:
        """The published bundle."""
        return self.path / "bundles" / self.recipe.name / self.recipe.version

    def sample(self, workers: int | None, report: Callable[[chains.Progress], None]) -> None:
        """Run the chains to their end, resuming those that were begun."""
        pool.run_all(self.recipe, self.data_dir, self.path, workers or os.cpu_count() or 1, report)

    def diagnose(self) -> Verdict:
        """Write `diagnostics.json` and `members.json`; returns the verdict.

        Members are chosen on the first half of the validation images, and the choice is judged on
        the second.
        """
        problem = self.problem
        verdict, figures = diagnose(problem, self.results)
        images, labels = problem.tensors(problem.validation)
        probabilities = self.samples.probabilities(images)
        half = len(labels) // 2
        members = self._choose(probabilities[:, :, :half])
        figures["members"] = curves(
            probabilities[:, :, half:], labels[half:].numpy(), members, self.samples.weights
        )
        figures["prior_predictive"] = prior_predictive(
            problem.posterior,
            images[:PRIOR_IMAGES],
            PRIOR_DRAWS,
            chains.generator(self.recipe.seed, 0, 0, 2),
        )
        self.write("members.json", members.model_dump(mode="json"))
        self.write("diagnostics.json", {"verdict": verdict.model_dump(), "figures": figures})
        return verdict

    def _choose(self, probabilities: NDArray[np.float32]) -> Members:
        recipe, available = self.recipe, len(self.samples)
        if available < recipe.members:
            raise RunError(f"{available} samples were kept, {recipe.members} members are asked for")
        if recipe.selection == "thinned":
            count, samples = probabilities.shape[:2]
            return thin(recipe.members, count, samples, recipe.group)
        return select(recipe.members, probabilities, recipe.group, self.samples.weights)

    def export(self) -> float:
        """Write the ensemble graph; returns the largest difference to torch on real images."""
        members = self._members
        positions = self.samples.positions(members)
        self.staging.mkdir(parents=True, exist_ok=True)
        images, _ = self.problem.tensors(self.problem.validation)
        return export.export(
            self.problem.network, positions, members.group, self.staging, images[:PARITY_IMAGES]
        )

    def calibrate(self) -> None:
        """Fit on training images, and calibrate and certify on calibration images.

        Writes `detection.json`, `calibration.npz`, `certificates.json`, `agreements.json` and
        `prediction_sets.json`.

        Raises:
            AgreementError: they do not prove that a confident policy decides as all members do.
            CalibrationError: there are too few calibration images for a policy or for the sets.
            CertifyError: they do not prove what a certified policy asks for.
        """
        problem, recipe = self.problem, self.recipe
        ensemble, labels = self._ensemble(), problem.calibration.labels
        found = detection.fit(problem.train, problem.input, ensemble, recipe.seed)
        answers = self._answers(problem.calibration, ensemble, found.detectors)
        given = {name: each for name, each in recipe.policies.items() if isinstance(each, Policy)}
        calibrate(recipe.score, answers).check(given, problem.labels)
        sets = fit_sets(recipe.prediction_sets, answers, labels)
        proved = certify_policies(recipe.policies, answers, labels, recipe.score)
        agreed = agree(_found(recipe, proved.__getitem__), recipe.agreement, answers)
        arrays = {**found.detectors.arrays(), **stored(answers)}
        np.savez(self.staging / bundles.CALIBRATION, allow_pickle=False, **arrays)
        passed = {"misses": found.misses, "alone": found.alone, "added": found.added}
        self.write("detection.json", {"fused": list(found.detectors.surprises), **passed})
        self.write("certificates.json", {name: each.model_dump() for name, each in proved.items()})
        self.write("agreements.json", {name: each.model_dump() for name, each in agreed.items()})
        self.write("prediction_sets.json", {"fitted": sets.model_dump() if sets else None})

    @property
    def certificates(self) -> dict[str, CertificateSpec]:
        """What calibration proved, by policy."""
        content = self._read("calibrate", "certificates.json")
        return {name: CertificateSpec.model_validate(each) for name, each in content.items()}

    @property
    def agreements(self) -> dict[str, AgreementSpec]:
        """How often confident policies differ from all members, by policy."""
        content = self._read("calibrate", "agreements.json")
        return {name: AgreementSpec.model_validate(each) for name, each in content.items()}

    @property
    def prediction_sets(self) -> PredictionSetSpec | None:
        """The prediction sets, if the recipe asks for them."""
        fitted = self._read("calibrate", "prediction_sets.json")["fitted"]
        return PredictionSetSpec.model_validate(fitted) if fitted else None

    @property
    def policies(self) -> dict[str, Policy]:
        """The recipe's policies, those that are certified with the probability that was found."""
        return _found(self.recipe, lambda name: self.certificates[name])

    def evaluate(self) -> dict[str, Any]:
        """Write `evaluation.json`, figures on the test and foreign sets, and `places.npz`."""
        answer = partial(self._answers, ensemble=self._ensemble(), detectors=self._detectors())
        test = answer(self.problem.test)
        foreign = {name: self.foreign(name) for name in self.recipe.data.ood}
        ood = {name: answer(part) for name, part in foreign.items()}
        shifted = {name: self.foreign(name) for name in self.recipe.data.shift}
        shift = {name: (answer(part), part.labels) for name, part in shifted.items()}
        sets, calibration = self.prediction_sets, self._calibration()
        policies = self.policies
        results = evaluate(
            calibration,
            sets.fitted if sets else None,
            policies,
            (test, self.problem.test.labels),
            ood,
            shift,
        )
        for name, part in foreign.items():
            images, _ = self.problem.tensors(part)
            results["ood"][name]["entropy_rhat"] = self.samples.entropy_rhat(images)
        default, others = policies["default"], dict(ood)
        if self.problem.input.channels == 1:
            between, both = ambiguous(self.problem.test)
            doubtful = answer(between)
            score = calibration.detector(default)
            results["ambiguous"] = ambiguity(test, (doubtful, both), ood, score)
            others = {"ambiguous": doubtful, **ood}
        results["detection"] = detection.averages(self._read("calibrate", "detection.json"))
        placed = place(calibration, default, (test, self.problem.test.labels), others)
        np.savez(self.path / "places.npz", allow_pickle=False, **placed)
        self.write("evaluation.json", results)
        return results

    def publish(self) -> Path:
        """Write figures, golden answers, model card and manifest, and publish the bundle."""
        problem, recipe = self.problem, self.recipe
        diagnostics = self._read("diagnose", "diagnostics.json")
        results = self._read("evaluate", "evaluation.json")
        with np.load(_made_by("evaluate", self.path / "places.npz")) as archive:
            placed = dict(archive)
        self._write_golden()
        manifest = Manifest(
            name=recipe.name,
            version=recipe.version,
            labels=problem.labels,
            input=problem.input,
            network=NetworkSpec(
                **recipe.network.model_dump(), num_weights=problem.network.num_weights
            ),
            members=self._members,
            posterior=PosteriorSpec(
                num_data=problem.posterior.num_data,
                temperature=recipe.sampler.temperature,
                prior_family=recipe.prior.family,
                prior_chosen=recipe.prior.chosen,
                prior_std=recipe.prior.stds(problem.network),
            ),
            sampler={"seed": recipe.seed, **recipe.sampler.model_dump()},
            data=(*problem.sources, *self._foreign_sources()),
            verdict=Verdict.model_validate(diagnostics["verdict"]),
            calibration=CalibrationSpec(
                size=len(problem.calibration),
                seed=recipe.seed,
                score=recipe.score,
                fused=self._fused,
            ),
            policies=self.policies,
            certificates=self.certificates,
            agreements=self.agreements,
            prediction_sets=self.prediction_sets,
            results=results,
            libraries={name: importlib.metadata.version(name) for name in LIBRARIES},
            files={},
        )
        nll = np.stack([result.sampling.observables[:, 0] for result in self.results])
        report.write(self.staging, manifest, diagnostics["figures"], nll, placed)
        bundles.publish(self.staging, manifest, self.published)
        return self.published

    @property
    def _members(self) -> Members:
        return Members.model_validate(self._read("diagnose", "members.json"))

    def foreign(self, name: str) -> Dataset:
        """The test part of another data set, in its own size and mode."""
        return data.load(name, "test", self.data_dir)

    def _foreign_sources(self) -> list[DataSource]:
        ood = [source(self.foreign(name), "test", "ood") for name in self.recipe.data.ood]
        shift = [source(self.foreign(name), "test", "shift") for name in self.recipe.data.shift]
        return ood + shift

    def _answers(self, dataset: Dataset, ensemble: Ensemble, detectors: Detectors) -> Answers:
        """What the exported ensemble and the detectors say of a data set."""
        return Answers.seen(dataset.images, self.problem.input, ensemble, detectors)

    def _ensemble(self) -> Ensemble:
        """The exported ensemble: prepared images [n, C, H, W] to its outputs."""
        graph = _made_by("export", self.staging / bundles.GRAPH)
        return export.open_ensemble(graph, self._members.group, os.cpu_count() or 1)

    @property
    def _fused(self) -> tuple[str, ...]:
        return tuple(self._read("calibrate", "detection.json")["fused"])

    def _detectors(self) -> Detectors:
        file = _made_by("calibrate", self.staging / bundles.CALIBRATION)
        fused = self._fused
        return Detectors.from_arrays(bundles.read_arrays(file, Detectors.names(fused)), fused)

    def _calibration(self) -> Calibration:
        file = _made_by("calibrate", self.staging / bundles.CALIBRATION)
        size = len(self.problem.calibration)
        return bundles.read_calibration(file, self.recipe.score, size, with_classes=True)

    def _write_golden(self) -> None:
        images = self.problem.test.images[:GOLDEN_IMAGES]
        outputs = self._ensemble()(prepare(images, self.problem.input)[0])
        np.savez_compressed(self.staging / bundles.GOLDEN, images=images, **asdict(outputs))

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file into the run directory, atomically."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(temporary, self.path / name)

    def _read(self, stage: str, name: str) -> dict[str, Any]:
        file = _made_by(stage, self.path / name)
        try:
            content: dict[str, Any] = json.loads(file.read_text())
        except ValueError as error:
            raise RunError(f"{file} is damaged: run the {stage} stage again") from error
        return content


def _recipe(file: Path) -> Recipe:
    try:
        return Recipe.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise RunError(f"{file} is damaged: use another --out") from error


def _found(recipe: Recipe, proved: Callable[[str], CertificateSpec]) -> dict[str, Policy]:
    """The recipe's policies, those that are certified with the probability that was found."""
    return {
        name: each if isinstance(each, Policy) else each.policy(proved(name).threshold)
        for name, each in recipe.policies.items()
    }


def _made_by(stage: str, file: Path) -> Path:
    """The file, if its stage has been run."""
    if not file.exists():
        raise RunError(f"{file} is missing: run the {stage} stage first")
    return file
