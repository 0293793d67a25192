"""Which heads' attention sinks hurt? ACT's offline search (Yu et al. 2024), screened, tested sequentially, and evaluated on held-out questions."""

from workbench.calibration.crew import Crew, Each
from workbench.calibration.evaluation import answers, evaluate, mcnemar
from workbench.calibration.result import LABEL, RULE, SCORE, Asked, Calibration, calibrate, calibrate_by, encoded
from workbench.calibration.search import Search, Setting, search
from workbench.calibration.sequential import ENOUGH, Tally, e_value
from workbench.calibration.taps import prepare, screen
from workbench.calibration.trial import Shift, Trial, shift, trial

__all__ = [
    "ENOUGH",
    "LABEL",
    "RULE",
    "SCORE",
    "Asked",
    "Calibration",
    "Crew",
    "Each",
    "Search",
    "Setting",
    "Shift",
    "Tally",
    "Trial",
    "answers",
    "calibrate",
    "calibrate_by",
    "e_value",
    "encoded",
    "evaluate",
    "mcnemar",
    "prepare",
    "screen",
    "search",
    "shift",
    "trial",
]
