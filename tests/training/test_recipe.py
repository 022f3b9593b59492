from __future__ import annotations

import math
import re
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from models.detectors import DETECTORS
from models.manifest import SetLevels
from models.networks import build
from models.policy import Policy
from training import recipe as recipes
from training.posterior import PriorError
from training.recipe import (
    Agreement,
    CertifiedPolicy,
    Prior,
    Recipe,
    RecipeError,
    change,
    load,
    names,
)

SHIPPED = (resources.files("training") / "recipes" / "digits.toml").read_text("utf-8")
SIDES = {"digits": 8}


def refuse(file: Path, text: str | bytes, reason: str) -> None:
    """Loading fails with one line that begins with the file and matches the reason."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load(str(file))
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    assert re.search(reason, message.removeprefix(f"{file}: "))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


@pytest.mark.parametrize("name", names())
def test_shipped_recipe_loads_and_its_prior_fits_its_network(name: str) -> None:
    recipe = load(name)
    side = SIDES.get(name, 28)
    network = build(
        recipe.network.name,
        (1, side, side),
        10,
        channels=recipe.network.channels,
        kernel=recipe.network.kernel,
        hidden=recipe.network.hidden,
        activation=recipe.network.activation,
    )
    assert recipe.name == name
    assert recipe.prior.posterior(network, 1000).prior.std.min() > 0
    assert recipe.sampler.temperature == 1


NETWORK = build("mlp", (1, 2, 2), 3, hidden=(5,))


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"weight_gain": 4.0, "bias_std": 0.5}, (1.0, 0.5, math.sqrt(4 / 5), 0.5)),
        ({"weight_gain": {"dense1": 1.0, "dense2": 20.0}, "bias_std": 0.5}, (0.5, 0.5, 2.0, 0.5)),
        ({"std": 0.3}, (0.3, 0.3, 0.3, 0.3)),
        (
            {"std": dict(zip(NETWORK.shapes, (0.1, 0.2, 0.3, 0.4), strict=True))},
            (0.1, 0.2, 0.3, 0.4),
        ),
    ],
)
def test_prior_gives_every_parameter_its_deviation(
    table: dict[str, Any], expected: tuple[float, ...]
) -> None:
    prior = Prior.model_validate({"family": "laplace", **table})
    assert list(prior.stds(NETWORK)) == list(NETWORK.shapes)
    assert tuple(prior.stds(NETWORK).values()) == pytest.approx(expected)
    assert prior.posterior(NETWORK, 10).prior.family == "laplace"


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"std": 1.0, "bias_std": 1.0}, "either weight_gain and bias_std, or std alone"),
        ({"weight_gain": 1.0}, "either weight_gain and bias_std, or std alone"),
        ({}, "either weight_gain and bias_std, or std alone"),
        ({"family": "cauchy", "std": 1.0}, "'gaussian', 'student-t' or 'laplace'"),
        ({"std": 1.0, "degrees_of_freedom": 2.0}, "greater than 2"),
    ],
)
def test_prior_that_says_too_much_or_too_little(table: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Prior.model_validate({"family": "gaussian", **table})


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"weight_gain": {"dense1": 1.0}, "bias_std": 1.0}, r"layers \['dense1', 'dense2'\]"),
        ({"weight_gain": 0.0, "bias_std": 1.0}, "dense1.weight must be positive"),
        ({"weight_gain": 1.0, "bias_std": 0.0}, "dense1.bias must be positive"),
        ({"std": -1.0}, "must be positive and finite, got -1.0"),
        ({"std": {"dense1.weight": 1.0}}, "must name every parameter"),
    ],
)
def test_prior_that_does_not_fit_the_network(table: dict[str, Any], reason: str) -> None:
    prior = Prior.model_validate({"family": "gaussian", **table})
    with pytest.raises(PriorError, match=reason):
        prior.posterior(NETWORK, 10)


@pytest.mark.parametrize(
    ("where", "key"),
    [("network", "batch_norm"), ("network", "dropout"), ("data", "augmentation")],
)
def test_what_breaks_the_likelihood_is_refused_with_the_reason(
    file: Path, where: str, key: str
) -> None:
    file.write_text(SHIPPED.replace(f"[{where}]", f"[{where}]\n{key} = 0.1"))
    with pytest.raises(RecipeError, match=f"{where}: .*{key} is refused: .*; remove it"):
        load(str(file))


def test_names_are_those_of_the_files() -> None:
    assert {"digits", "mnist"} <= set(names())
    assert names() == sorted(names())


def test_file_and_name_give_the_same_recipe(file: Path) -> None:
    file.write_text(SHIPPED)
    assert load(str(file)) == load("digits")
    assert load(str(file)) == load("digits")


def test_recipe_survives_json() -> None:
    recipe = load("mnist")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("seed = 1", "seed = 1\ncolour = 'red'", "^colour: unknown key$"),
        ("alpha = 0.01", "alpha = 0.01\nbeta = 1", "^policies.default.beta: unknown key$"),
        ("chains = 4", "chains = 4\nspeed = 1", "^sampler.speed: unknown key$"),
        ("final = 0.1", "final = 0.1\nspeed = 1", "^sampler.schedule.cooling.speed: unknown key$"),
        ("seed = 1\n", "", "^seed: Field required$"),
        ("validation = 100\n", "", "^data.validation: Field required$"),
        ("initial = 0.4\n", "", "^sampler.schedule.cooling.initial: Field required$"),
        ('kind = "cooling"\n', "", "^sampler.schedule: .*kind"),
        ('kind = "cooling"', 'kind = "linear"', "^sampler.schedule: .*cooling"),
        ("seed = 1", "seed = 'one'", "^seed: .*valid integer"),
        ("seed = 1", "seed = -1", "^seed: .*greater than or equal to 0"),
        ("seed = 1", "seed = 1.5", "^seed: .*integer"),
        ("chains = 4", "chains = 0", "^sampler.chains: "),
        ("trace = 64", "trace = 3", "^sampler.trace: .*4"),
        ("temperature = 1.0", "temperature = -1.0", "^sampler.temperature: "),
        ("temperature = 1.0", "temperature = nan", "^sampler.temperature: "),
        ("temperature = 1.0", "temperature = inf", "^sampler.temperature: "),
        ("alpha = 0.01", "alpha = 1.0", "^policies.default.alpha: "),
        ("alpha = 0.01", "alpha = nan", "^policies.default.alpha: "),
        ('polarity = "light-on-dark"', 'polarity = "dark"', "^polarity: .*light-on-dark"),
        ('score = "mutual_information"', 'score = "vibes"', "^score: .*mutual_information"),
        ("min_probability = 0.9", "min_probability = 0.9\nscore = 'vibes'", "no detector 'vibes'"),
        ('name = "digits"', 'name = "../digits"', "^name: "),
        ('dataset = "digits"', 'dataset = "digits"\nfolder = "x"', "^data: .*dataset or folder"),
        ('dataset = "digits"\n', "", "^data: .*dataset or folder"),
        ("[policies.default]", "[policies.strict]", 'policies must contain "default"'),
        ("min_probability = 0.9", "", "^policies.default: .*give either min_probability, or"),
        (
            "min_probability = 0.9",
            "min_probability = 0.9\ntarget_risk = 0.1\nconfidence = 0.9",
            "^policies.default: .*give either min_probability, or target_risk and confidence$",
        ),
        ("min_probability = 0.9", "target_risk = 0.1", "^policies.default.confidence: Field requ"),
        ("min_probability = 0.9", "confidence = 0.9", "^policies.default.target_risk: Field requ"),
        (
            "min_probability = 0.9",
            "target_risk = 1.0\nconfidence = 0.9",
            "^policies.default.target_risk: .*less than 1",
        ),
        (
            "min_probability = 0.9",
            "target_risk = 0.1\nconfidence = 0.9\nbeta = 1",
            "^policies.default.beta: unknown key$",
        ),
        (
            "min_probability = 0.9",
            "target_risk = 0.1\nconfidence = 0.9\nalpha_confidence = 0.9",
            "^policies.default: .*a certificate is proved of the marginal flag alone",
        ),
        (
            "min_probability = 0.9",
            "target_risk = 0.1\nconfidence = 0.9\nconditional_on = 'class'",
            "^policies.default: .*a certificate is proved of the marginal flag alone",
        ),
        (
            "min_probability = 0.9",
            "min_probability = 0.9\nalpha_confidence = 0.9\nconditional_on = 'class'",
            "^policies.default: .*give either alpha_confidence or conditional_on",
        ),
        ("coverage = 0.99", "coverage = 1.0", "^prediction_sets.coverage: .*less than 1"),
        ("coverage = 0.99", "", "^prediction_sets.coverage: Field required"),
        ('score = "lac"', 'score = "best"', "^prediction_sets.score: .*raps"),
        ("coverage = 0.99", "coverage = 0.99\nsize = 1", "^prediction_sets.size: unknown key"),
        (
            "[policies.default]\nalpha = 0.01\nmin_probability = 0.9",
            "[policies]\ndefault = 1",
            "dict",
        ),
        ("members = 16", "members = 68", "members exceed chains × samples"),
        (
            "members = 16",
            "members = 18",
            "members = 18 must be a multiple of group = 4, the members that are evaluated together",
        ),
        ("group = 4", "group = 3", "members = 16 must be a multiple of group = 3"),
        (
            "min_probability = 0.9",
            "min_probability = 0.9\nsettled_at = 0.95",
            "^policies.default: .*settled_at goes with members = confident",
        ),
        (
            "min_probability = 0.9",
            "target_risk = 0.1\nconfidence = 0.9\nsettled_at = 0.95",
            "^policies.default: .*settled_at goes with members = confident",
        ),
        (
            "min_probability = 0.9",
            "target_risk = 0.1\nconfidence = 0.9\nmembers = 'confident'",
            "^policies.default: .*settled_at goes with members = confident",
        ),
        (
            "min_probability = 0.9",
            "min_probability = 0.9\nmembers = 'some'",
            "^policies.default.members: .*'all', 'exact' or 'confident'",
        ),
        (
            "min_probability = 0.9",
            "min_probability = 0.9\nmembers = 'confident'\nsettled_at = 0.8",
            "^policies.default: .*settled_at must not be below min_probability",
        ),
        ("[policies", "[agreement]\nrate = 0.0\n\n[policies", "^agreement.rate: .*greater than 0"),
        ("[policies", "[agreement]\nshare = 0.1\n\n[policies", "^agreement.share: unknown key"),
        ("seed = 1", "seed = = 1", r"^not TOML: .*line 4"),
        ("seed = 1", "seed = 1\nseed = 2", "^not TOML: "),
        ("[data]", "[data", "^not TOML: "),
    ],
)
def test_recipe_that_does_not_fit(file: Path, old: str, new: str, reason: str) -> None:
    assert old in SHIPPED
    refuse(file, SHIPPED.replace(old, new, 1), reason)


def test_recipe_in_another_encoding(file: Path) -> None:
    refuse(file, SHIPPED.replace("σ", "Ångström").encode("latin-1", "replace"), "UTF-8")


@pytest.mark.parametrize("line", ["hidden = [0]", "hidden = [-3]", "hidden = [32]\nkernel = 0"])
def test_network_without_units(file: Path, line: str) -> None:
    refuse(file, SHIPPED.replace("hidden = [32]", line), r"^network\.(hidden|kernel)")


def test_recipe_that_is_not_there(file: Path) -> None:
    with pytest.raises(RecipeError, match=f"^{re.escape(str(file))}: No such file"):
        load(str(file))
    file.mkdir()
    with pytest.raises(RecipeError, match="Is a directory"):
        load(str(file))


@pytest.mark.parametrize("name", ["nothing", "", "digits.json", "../recipes/digits"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(
        RecipeError, match=re.escape(f"no recipe {name!r}: use one of cifar10, digits, ")
    ):
        load(name)


def test_policy_has_levels_or_asks_for_them() -> None:
    recipe = load("mnist")
    assert recipe.policies["default"] == CertifiedPolicy(
        alpha=0.01,
        target_risk=0.005,
        confidence=0.999,
        members="confident",
        settled_at=(0.997, 0.9),
    )
    assert recipe.policies["default"].policy(0.72) == Policy(
        alpha=0.01, min_probability=0.72, members="confident", settled_at=(0.997, 0.9)
    )
    assert recipe.agreement == Agreement(rate=0.001, confidence=0.9975)
    assert recipe.policies["strict"] == Policy(
        alpha=0.05, min_probability=0.99, alpha_confidence=0.99
    )
    assert recipe.policies["by_class"] == Policy(
        alpha=0.01, min_probability=0.9, conditional_on="class"
    )
    assert recipe.prediction_sets == SetLevels(score="lac", coverage=0.999)


def test_members_that_are_fewer_than_a_group_are_one() -> None:
    assert change(load("digits"), {"members": 3, "group": 4}).members == 3


@pytest.mark.parametrize("members", ["all", "exact"])
def test_certified_policy_of_any_members(members: Literal["all", "exact"]) -> None:
    levels = CertifiedPolicy(alpha=0.01, target_risk=0.01, confidence=0.9, members=members)
    assert levels.policy(0.8) == Policy(alpha=0.01, min_probability=0.8, members=members)


@pytest.mark.parametrize("score", DETECTORS)
def test_every_detector_may_raise_the_flag_of_a_recipe_or_of_a_policy(score: str) -> None:
    policy = {"alpha": 0.01, "min_probability": 0.9, "score": score}
    recipe = change(load("digits"), {"score": score, "policies": {"other": policy}})
    assert recipe.score == score
    assert recipe.policies["other"] == Policy(**policy)


def test_change_merges_tables_and_checks_anew() -> None:
    recipe = load("digits")
    changed = change(recipe, {"seed": 9, "sampler": {"chains": 7}})
    assert changed.seed == 9
    assert changed.sampler.chains == 7
    assert changed.sampler.samples == recipe.sampler.samples
    assert recipe.seed == 1
    assert changed != recipe
    bad: list[dict[str, Any]] = [{"sampler": {"chains": 0}}, {"colour": 1}, {"members": 1000}]
    for values in bad:
        with pytest.raises(RecipeError, match=r"^digits: "):
            change(recipe, values)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"kind": "constant", "step_size": 0.3}, [0.3, 0.3, 0.3]),
        ({"kind": "polynomial", "a": 8.0, "b": 2.0, "gamma": 1.0}, [4.0, 0.8, 0.08]),
        ({"kind": "cooling", "initial": 0.5, "final": 0.1, "epochs": 2}, [0.5, 0.3, 0.1]),
    ],
)
def test_schedule_counts_steps_from_epochs(schedule: dict[str, Any], expected: list[float]) -> None:
    """With 8 steps an epoch: steps 0, 8 and 98."""
    recipe = recipes.change(load("digits"), {"sampler": {"schedule": schedule}})
    step_size = recipe.sampler.step_sizes(8)
    assert [step_size(step) for step in (0, 8, 98)] == pytest.approx(expected)
