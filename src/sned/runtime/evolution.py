"""Evolving many small integers against two objectives with NSGA-II, as optuna does it.

The one part of the core that needs an extra package: it is imported when somebody evolves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sned.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Genome = dict[str, int]


@dataclass(frozen=True, slots=True)
class Individual:
    """One genome and what it was judged: loss per token, and parameters left."""

    genome: Genome
    loss: float
    params: int


def evolve(
    genes: Mapping[str, int],
    judge: Callable[[Sequence[Genome]], Sequence[tuple[float, int]]],
    *,
    first: Sequence[Genome],
    population: int,
    generations: int,
    seed: int,
) -> list[Individual]:
    """Return every individual that was judged, generation after generation; the same for the same seed.

    Args:
        genes: The largest value of each gene; the least is 0.
        judge: Returns loss and parameters left of each genome of a generation; an infinite loss rules it out.
        first: Genomes that the first generation begins with; chance fills up the rest.
        population: Individuals in a generation.
        generations: How many generations to judge.
        seed: Of all chance.

    Raises:
        MissingExtraError: optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", "evolve", purpose="evolving widths") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for genome in first[:population]:
        study.enqueue_trial(genome)
    judged: list[Individual] = []
    for _ in range(generations):
        trials = [study.ask() for _ in range(population)]
        genomes = [{name: trial.suggest_int(name, 0, most) for name, most in genes.items()} for trial in trials]
        for trial, genome, (loss, params) in zip(trials, genomes, judge(genomes), strict=True):
            if math.isfinite(loss):
                study.tell(trial, [loss, params])
                judged.append(Individual(genome, loss, params))
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return judged
