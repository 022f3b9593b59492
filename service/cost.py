"""What steps cost, learnt from those that were taken: enough to foresee when work will be done."""

from __future__ import annotations

import math
from collections.abc import Sequence

# How many of the last steps, and of the last settled cases, the estimates remember.
STEPS, CASES = 128, 1024


class Cost:
    """Seconds of work ahead.

    A step of n images takes a·n + b seconds, a, b ≥ 0: least squares over the steps so far, with
    exponentially fading weights (the recursion of weighted moments: West 1979, "Updating mean and
    variance estimates"). As long as all steps had the same n, which says nothing of the slope,
    a = 0: a hopeful estimate is tried, and so corrected, while one that is too high would refuse
    what could teach it. An estimate begins as the plain mean of what there is.

    Attributes:
        per_image: a, seconds.
        per_step: b, seconds.
        case_steps: steps that a case takes until it is settled, on average.
        step_seconds: of a step, on average; infinite as long as there was none.
    """

    def __init__(self) -> None:
        self.per_image = self.per_step = 0.0
        self.case_steps = 1.0
        self.step_seconds = math.inf
        self._steps = self._cases = 0
        self._images = self._variance = self._covariance = 0.0
        self._first_share = 1.0

    def count_step(self, stage: int, images: int, seconds: float) -> None:
        """Learn from one step of `images` cases that had had `stage` steps before."""
        self._steps += 1
        gain = max(1 / self._steps, 1 / STEPS)
        if self._steps == 1:
            self.step_seconds = seconds
        surprise, late = images - self._images, seconds - self.step_seconds
        self._images += gain * surprise
        self.step_seconds += gain * late
        self._variance = (1 - gain) * (self._variance + gain * surprise * surprise)
        self._covariance = (1 - gain) * (self._covariance + gain * surprise * late)
        self._first_share += gain * ((stage == 0) - self._first_share)
        self._fit()

    def count_settled(self, steps: int) -> None:
        """Learn from a case that took so many steps."""
        self._cases += 1
        self.case_steps += max(1 / self._cases, 1 / CASES) * (steps - self.case_steps)

    def seconds(self, work: Sequence[tuple[int, int]], max_batch: int) -> float:
        """Time for work, given as pairs (stage, images): a·image-steps + b·steps.

        An image at stage s is expected to need max(1, `case_steps` − s) steps more. The steps are
        counted by those that take new images, ceil(images / `max_batch`), and to each come as many
        others as did of late; but they are no fewer than image-steps / `max_batch`.
        """
        images, image_steps = 0, 0.0
        for stage, count in work:
            images += count
            image_steps += count * max(1.0, self.case_steps - stage)
        steps = math.ceil(images / max_batch) / max(self._first_share, 1 / STEPS)
        steps = max(steps, math.ceil(image_steps / max_batch))
        return self.per_image * image_steps + self.per_step * steps

    def _fit(self) -> None:
        """The least squares of the moments, on the nearest edge where a or b would be negative."""
        slope = self._covariance / self._variance if self._variance > 0 else 0.0
        self.per_image = max(0.0, slope)
        self.per_step = self.step_seconds - self.per_image * self._images
        if self.per_step < 0:
            product = self._covariance + self._images * self.step_seconds
            self.per_image = product / (self._variance + self._images**2)
            self.per_step = 0.0
