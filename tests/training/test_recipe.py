from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from models.networks import build
from training import recipe as recipes
from training.posterior import Posterior
from training.recipe import Recipe, RecipeError, change, load, names

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
    assert Posterior.build(network, 1000, recipe.prior_std).prior_std.min() > 0
    assert recipe.sampler.temperature == 1


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
        ('name = "digits"', 'name = "../digits"', "^name: "),
        ('dataset = "digits"', 'dataset = "digits"\nfolder = "x"', "^data: .*dataset or folder"),
        ('dataset = "digits"\n', "", "^data: .*dataset or folder"),
        ("[policies.default]", "[policies.strict]", 'policies must contain "default"'),
        ("members = 16", "members = 65", "members exceed chains × samples"),
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
    with pytest.raises(RecipeError, match=re.escape(f"no recipe {name!r}: use one of digits, ")):
        load(name)


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
