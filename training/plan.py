"""When a chain does what: its phases, and the steps at which it keeps weights and is observed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.checkpoint import ChainError, Phase
from training.problem import Problem


@dataclass(frozen=True)
class Plan:
    """Phases of a chain, in epochs from its start and steps from the end of the warm start.

    Attributes:
        warm_epochs: epochs of the warm start.
        steps_per_epoch: minibatches in an epoch.
        sampling_epoch: first epoch of the sampling phase.
        half_step_epoch: first epoch of the half-step phase.
        epochs: all of them.
        sample_at: steps after which weights are kept.
        trace_at: steps after which the chain is observed.
        step_size: η_t; in the epochs of the warm start, where chains that begin at a prior draw
            take Langevin steps, it rises to η_0 in a straight line.
        samples_now: whether step t may be kept, and counts for temperatures.
        longest_step: the longest step of the sampling phase that may be kept.
    """

    warm_epochs: int
    steps_per_epoch: int
    sampling_epoch: int
    half_step_epoch: int
    epochs: int
    sample_at: frozenset[int]
    trace_at: frozenset[int]
    step_size: Callable[[int], float]
    samples_now: Callable[[int], bool]
    longest_step: float

    @classmethod
    def of(cls, problem: Problem) -> Plan:
        """The plan of a recipe.

        Raises:
            ChainError: a batch exceeds the data, or the sampling phase is too short.
        """
        sampler = problem.recipe.sampler
        steps = problem.posterior.num_data // sampler.batch_size
        if steps == 0:
            raise ChainError(
                f"batch_size {sampler.batch_size} exceeds the {problem.posterior.num_data} "
                "training images"
            )
        sampling_epoch = sampler.warm_start_epochs + sampler.burn_in_epochs
        half_step_epoch = sampling_epoch + sampler.sampling_epochs
        first, last = (
            steps * (epoch - sampler.warm_start_epochs)
            for epoch in (sampling_epoch, half_step_epoch)
        )
        samples_now = sampler.samples_now(steps)
        eligible = [step for step in range(first, last) if samples_now(step)]
        for name, count in (("samples", sampler.samples), ("trace", sampler.trace)):
            if eligible and count > len(eligible):
                raise ChainError(
                    f"{name} {count} exceeds the {len(eligible)} steps of the sampling phase"
                )
        step_sizes = sampler.step_sizes(steps)
        density = sampler.trace / max(1, sampler.sampling_epochs)
        checks = [
            step
            for step in range(last, last + steps * sampler.half_step_epochs)
            if samples_now(step)
        ]

        approach = sampler.warm_start_epochs * steps + 1

        def step_size(step: int) -> float:
            if step < 0:
                return step_sizes(0) * (approach + step) / approach
            halved = sampler.half_step_epochs and step >= last
            return step_sizes(step) / (2 if halved else 1)

        return cls(
            warm_epochs=sampler.warm_start_epochs,
            steps_per_epoch=steps,
            sampling_epoch=sampling_epoch,
            half_step_epoch=half_step_epoch,
            epochs=half_step_epoch + sampler.half_step_epochs,
            sample_at=_marks(eligible, sampler.samples),
            trace_at=_marks(range(first), round(density * sampler.burn_in_epochs))
            | _marks(eligible, sampler.trace)
            | _marks(checks, max(4, round(density * sampler.half_step_epochs))),
            step_size=step_size,
            samples_now=samples_now,
            longest_step=max((step_sizes(step) for step in eligible), default=step_sizes(0)),
        )

    def first_step(self, epoch: int) -> int:
        """Index of the first step of an epoch."""
        return (epoch - self.warm_epochs) * self.steps_per_epoch

    def phase(self, epoch: int) -> Phase:
        """The phase of an epoch after the warm start."""
        if epoch >= self.half_step_epoch:
            return "half_step"
        return "sampling" if epoch >= self.sampling_epoch else "burn_in"


def _marks(steps: Sequence[int], count: int) -> frozenset[int]:
    """`count` of the steps at equal distances, the last among them."""
    return frozenset(
        steps[(index + 1) * len(steps) // count - 1] for index in range(count) if steps
    )
