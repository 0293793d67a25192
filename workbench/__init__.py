"""Attention-head workbench: prompts → capture → scores → labels → { kernels | circuits | dashboard | files }.

    import workbench as wb

    model = wb.load("smollm2-135m")
    scores = wb.score(model, ["induction", "retrieval"])
    labels = wb.label(scores)
    labels.save("heads.json")

The public names are imported when they are first used, so that a command that needs no model starts at once.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench import kernels as kernels
    from workbench.captures import Capture, capture, generate
    from workbench.edits import Ablate, Reference
    from workbench.errors import InputError
    from workbench.heads import Head, ModelCard, Shape
    from workbench.labels import HeadLabels, label
    from workbench.measure import score
    from workbench.models import HFModel, load
    from workbench.options import Options
    from workbench.probes import PROBES, Probe
    from workbench.prompts import Prompts
    from workbench.rules import RULES, Rule
    from workbench.scores import HeadScores

# PyTorch's CPU threads wait for each other thousands of times in a pass. By default they spin, which on a machine that is busy with other work
# made a capture four times slower; asleep they cost nothing. It must be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOME = {
    "captures": ("Capture", "capture", "generate"),
    "edits": ("Ablate", "Reference"),
    "errors": ("InputError",),
    "heads": ("Head", "ModelCard", "Shape"),
    "labels": ("HeadLabels", "label"),
    "measure": ("score",),
    "models": ("HFModel", "load"),
    "options": ("Options",),
    "probes": ("PROBES", "Probe"),
    "prompts": ("Prompts",),
    "rules": ("RULES", "Rule"),
    "scores": ("HeadScores",),
}

__all__ = [
    "PROBES",
    "RULES",
    "Ablate",
    "Capture",
    "HFModel",
    "Head",
    "HeadLabels",
    "HeadScores",
    "InputError",
    "ModelCard",
    "Options",
    "Probe",
    "Prompts",
    "Reference",
    "Rule",
    "Shape",
    "capture",
    "generate",
    "label",
    "load",
    "score",
]


def __getattr__(name: str) -> Any:
    if name == "kernels":
        return import_module("workbench.kernels")
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"workbench.{module}"), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")
