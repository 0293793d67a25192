"""What do the samples of a run say by themselves? Means and intervals of the parts that are done; its nulls are another run's."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.heads import Head
from workbench.probes import PROBES
from workbench.results.caveats import Caveat, listed, sentence
from workbench.runs import Run, versions
from workbench.scores import bootstrap_interval

FEW = 10


@dataclass(frozen=True, eq=False)
class Samples:
    """One probe in a run: the samples that count, how many there are in all, and the means of them with 95% intervals, NaN of fewer than two."""

    probe: str
    tests: int
    counted: int
    score_LH: Float[np.ndarray, "L H"]
    low_LH: Float[np.ndarray, "L H"]
    high_LH: Float[np.ndarray, "L H"]

    @property
    def table(self) -> pd.DataFrame:
        """One row per head: `probe`, `head`, `score`, `ci_low`, `ci_high`, `n`."""
        layers, heads = self.score_LH.shape
        names = [str(Head(layer, index)) for layer in range(layers) for index in range(heads)]
        numbers = {"score": self.score_LH.ravel(), "ci_low": self.low_LH.ravel(), "ci_high": self.high_LH.ravel()}
        return pd.DataFrame({"probe": self.probe, "head": names, **numbers, "n": self.counted})


def samples_of(run: Run) -> list[Samples]:
    """The probes of a run of which samples are on disk and count."""
    parts = [part for number in range(run.expected) if (part := run.load(f"part-{number:04d}")) is not None]
    made = []
    for probe in sorted({name for part in parts for name in part.scores}):
        having = [part for part in parts if probe in part.scores]
        score_NLH = np.concatenate([part.scores[probe] for part in having])
        counted_N = np.concatenate([part.valid[probe] for part in having])
        if probe in PROBES and PROBES[probe].drop_dead:
            counted_N &= (score_NLH != 0).any(axis=(1, 2))
        if counted_N.any():
            low_LH, high_LH = bootstrap_interval(score_NLH[counted_N])
            made.append(Samples(probe, len(counted_N), int(counted_N.sum()), score_NLH[counted_N].mean(axis=0), low_LH, high_LH))
    return made


def caveats_of_run(run: Run, about: str) -> list[Caveat]:
    """What a run calls for."""
    made = samples_of(run)
    done = sum(run.load(f"part-{number:04d}") is not None for number in range(run.expected))
    said = []
    if done < run.expected:
        said.append(("stop", f"the run is not finished: {done} of {run.expected} parts are done"))
    if lacking := [name for name in run.question["probes"] if name not in {one.probe for one in made}]:
        said.append(("stop", f"no sample counts of {listed(lacking)}"))
    said.append(
        ("care", "a run holds samples, neither nulls nor labels; `workbench score` with the same options makes these from it without computing it again")
    )
    if failed := [f"{one.probe} ({one.counted} of {one.tests})" for one in made if one.counted < one.tests]:
        said.append(("care", f"tests that do not count were left out: {listed(failed)}"))
    if few := [f"{one.probe} ({one.counted})" for one in made if one.counted < FEW]:
        said.append(("care", f"fewer than {FEW} samples, so that intervals are wide or missing: {listed(few)}"))
    if run.question.get("versions") != versions():
        said.append(("know", "made by other code or versions than those at work now, which would not find it again"))
    return [Caveat(level, about, sentence(text)) for level, text in said]
