"""What came out, and how far is it to be believed? The results that lie in a folder, their numbers in short, and the caveats that these call for."""

from workbench.results.caveats import LEVELS, Caveat, ordered
from workbench.results.reading import Result, Results, collect

__all__ = ["LEVELS", "Caveat", "Result", "Results", "collect", "ordered"]
