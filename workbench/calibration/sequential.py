"""When is enough known about a head? A paired sequential test on the questions whose answer calibration turns right (fixed) or wrong (broken)."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from scipy.special import betainc, betaln

ENOUGH = 20.0
"""The e-value at which a head is decided: an error of at most 1 in 20 for each head and direction, however often one looks."""


def e_value(fixed: int, broken: int) -> float:
    """The evidence that calibration fixes answers more often than it breaks them, against a coin that is fair or worse; 1 with nothing seen.

    E = ∫ q^f (1 − q)^b / 2^−(f+b) dq, the mean over q uniform in 1/2–1: a mixture of likelihood ratios. If every changed answer is fixed with a chance of at
    most 1/2, whatever came before, E is a non-negative supermartingale that starts at 1; so the chance that it ever reaches x is at most 1/x (Ville), and one
    may stop whenever one likes. So it is where questions are independent draws that come in random order. It speaks of one head: among m heads without use,
    at most m/20 are expected to reach 20. `e_value(broken, fixed)` is the evidence of the opposite.
    """
    inside = float(betainc(broken + 1, fixed + 1, 0.5))  # the mass of Beta(fixed + 1, broken + 1) above 1/2
    if inside == 0:
        return 0.0
    return math.exp((fixed + broken + 1) * math.log(2) + float(betaln(fixed + 1, broken + 1)) + math.log(inside))


@dataclass
class Tally:
    """What has been seen of one head, by task: questions `seen_K`, `fixed_K` and `broken_K` of `total_K`, and how many of those to come can be fixed at most.

    A question can be fixed that the plain model answers wrongly, and in which the head has a sink. `stopped` is "", or why no more is measured: helps,
    hurts, or futile.
    """

    total_K: Int[np.ndarray, " K"]
    fixable_K: Int[np.ndarray, " K"]
    seen_K: Int[np.ndarray, " K"]
    fixed_K: Int[np.ndarray, " K"]
    broken_K: Int[np.ndarray, " K"]
    stopped: str = ""

    @classmethod
    def fresh(cls, total_K: Int[np.ndarray, " K"], fixable_K: Int[np.ndarray, " K"]) -> "Tally":
        """Nothing seen yet."""
        return cls(total_K, fixable_K.copy(), np.zeros_like(total_K), np.zeros_like(total_K), np.zeros_like(total_K))

    def add(self, task: int, before: bool, after: bool, sink: bool) -> None:
        """One more question: whether it was answered rightly before calibration and after, and whether the head had a sink in it."""
        self.seen_K[task] += 1
        self.fixed_K[task] += after and not before
        self.broken_K[task] += before and not after
        self.fixable_K[task] -= sink and not before

    @property
    def fixed(self) -> int:
        """Answers turned right."""
        return int(self.fixed_K.sum())

    @property
    def broken(self) -> int:
        """Answers turned wrong."""
        return int(self.broken_K.sum())

    @property
    def gain(self) -> float:
        """The change of accuracy, mean over the tasks, on the questions seen; −1 to 1, and 0 where nothing was seen."""
        seen_K = self.seen_K > 0
        return float(np.mean((self.fixed_K - self.broken_K)[seen_K] / self.seen_K[seen_K])) if seen_K.any() else 0.0

    @property
    def best(self) -> float:
        """The change of accuracy over all questions, if every one to come that can be fixed were fixed and none broken."""
        return float(np.mean((self.fixed_K + self.fixable_K - self.broken_K) / self.total_K))

    def judge(self) -> str:
        """Why no more needs to be measured; empty if more does. Futility is certain: not even the best that can come would make the head help."""
        if self.best <= 0:
            self.stopped = "futile"
        elif e_value(self.fixed, self.broken) >= ENOUGH:
            self.stopped = "helps"
        elif e_value(self.broken, self.fixed) >= ENOUGH:
            self.stopped = "hurts"
        return self.stopped

    @property
    def kept(self) -> bool:
        """ACT's rule: calibrating the head alone raises the mean accuracy over the tasks. One that was stopped early helps by the sequential test."""
        return self.stopped in ("", "helps") and self.gain > 0
