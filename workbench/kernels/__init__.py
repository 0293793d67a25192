"""Policies at work: the weights permuted, the attention that runs, its cache, and `apply`.

labels = HeadLabels.load("heads.json")
with workbench.kernels.apply(model, labels) as applied:
applied.generate(...)
"""

from workbench.kernels.applied import Applied, apply

__all__ = ["Applied", "apply"]
