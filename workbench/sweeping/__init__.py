"""What do the heads of many models do, under many prompts, seeds and edits? A sweep: a list of independent tasks, and one table of all scores.

asking: what a sweep is, from YAML or the command line → planning: what it takes → running: by an executor, going on from what is there →
dataset: the folder of results, as one table. `tasks` are what the executor runs.
"""

from workbench.sweeping.asking import KEYS, Cell, Sweep
from workbench.sweeping.comparing import compare
from workbench.sweeping.dataset import Dataset
from workbench.sweeping.planning import planned
from workbench.sweeping.running import run
from workbench.sweeping.tasks import PATIENCE, score_on

__all__ = ["KEYS", "PATIENCE", "Cell", "Dataset", "Sweep", "compare", "planned", "run", "score_on"]
