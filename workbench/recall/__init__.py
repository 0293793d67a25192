"""What does a model still find in a long text without some of its heads? Needle recall over length × depth, beside other heads of the same layers.

The model answers greedily with all heads, without the chosen ones, and without as many others, drawn at random. The tests are the same for all, so that
differences are paired. `measuring` does it; what is here reads, sums up and keeps what came out, and needs no model.
"""

from workbench.recall.table import MEASURES, PHASES, VARIANTS, Recall, of_benchmark

__all__ = ["MEASURES", "PHASES", "VARIANTS", "Recall", "of_benchmark"]
