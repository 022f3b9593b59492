from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes

from models.uncertainty import Array
from training.apart import DECISIONS
from training.figures import DRAWN, draw_points


def lines(axes: Axes) -> dict[str, Array]:
    """What is drawn under each label: x and y, [2, n]."""
    return {str(line.get_label()): np.array(line.get_data()) for line in axes.get_lines()}


@pytest.fixture
def placed() -> dict[str, Array]:
    return {
        "test": np.array([[0.1, 0.2, 0.3], [1.0, 2.0, 9.0], [0, 1, 2]]),
        "foreign": np.array([[0.5, 0.6], [7.0, 30.0], [2, 2]]),
        "third": np.array([[0.5], [3.0], [1]]),
        "fourth": np.array([[0.5], [3.0], [0]]),
    }


def test_every_point_is_drawn_as_what_became_of_it(placed: dict[str, Array]) -> None:
    figure = draw_points(placed, "fused")
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert len(panels) == len(placed)
    for axes, (name, values) in zip(panels, placed.items(), strict=True):
        drawn = lines(axes)
        assert axes.get_title().startswith(f"{name}: {values.shape[1]} images")
        for kind, decision in enumerate(DECISIONS):
            assert drawn[decision].tolist() == values[:2, values[2] == kind].tolist()
        assert set(drawn["least flagged score"][1]) == {7.0}
        assert axes.get_xlim()[0] == axes.get_ylim()[0] == 0
        assert axes.get_xlim()[1] > 0.6
        assert axes.get_ylim()[1] > 30
    assert panels[0].get_title().endswith("accept 33.3 %, uncertain 33.3 %, ood 33.3 %")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*DECISIONS, "least flagged score"]


def test_nothing_flagged_and_many_images() -> None:
    many = np.stack(
        [np.linspace(0, 1, 10 * DRAWN + 1), np.full(10 * DRAWN + 1, 0.4), np.zeros(10 * DRAWN + 1)]
    )
    figure = draw_points({"test": many}, "mutual_information")
    drawn = lines(figure.axes[0])
    assert "least flagged score" not in drawn
    assert 0.8 * DRAWN < drawn["accept"].shape[1] <= DRAWN
    assert len(figure.axes[0].get_yticks()) > 2
    assert "4,001 images\naccept 100.0 %" in figure.axes[0].get_title()


def test_scores_below_nothing_are_seen() -> None:
    energies = np.array([[0.1, 0.2], [-30.0, -5.0], [0, 0]])
    low, high = draw_points({"test": energies}, "energy").axes[0].get_ylim()
    assert low < -30
    assert high > -5
