"""What does a model still find in a long text without some of its heads? Needle recall over length × depth, beside other heads of the same layers.

The model answers greedily with all heads, without the chosen ones, and without as many others, drawn at random. The tests are the same for all, so that
differences are paired.
"""

from workbench.recall.measuring import TESTS, Setting, chosen, measure
from workbench.recall.table import MEASURES, PHASES, VARIANTS, Recall, of_benchmark

__all__ = ["MEASURES", "PHASES", "TESTS", "VARIANTS", "Recall", "Setting", "chosen", "measure", "of_benchmark"]
