"""Is anything lost? Needle recall, perplexity and next-token agreement of a model under policies, along a sweep of KV budgets, beside the full model.

Ways to spend the same memory are compared: the heads that scores choose, by one or several rankings, as many heads chosen at random (several seeds), a
window of equal size in every head (StreamingLLM's cache), and every head full. The tests are the same for all, so that differences are paired.
"""

from workbench.verification.measuring import Measured, measured
from workbench.verification.verifying import COLUMNS, Verification, combined, verify
from workbench.verification.ways import BUDGETS, TESTS, Setting, Way, ways

__all__ = ["BUDGETS", "COLUMNS", "TESTS", "Measured", "Setting", "Verification", "Way", "combined", "measured", "verify", "ways"]
