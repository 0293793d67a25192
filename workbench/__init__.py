"""Attention-head workbench: prompts → capture → scores → labels → { kernels | circuits | dashboard | files }.

import workbench as wb

model = wb.load("smollm2-135m")
scores = wb.score(model, ["induction", "retrieval"])
labels = wb.label(scores)
labels.save("heads.json")
"""

from workbench.captures import Capture, capture, generate
from workbench.edits import Ablate, Reference
from workbench.errors import InputError
from workbench.heads import Head, ModelCard, Shape
from workbench.labels import HeadLabels, label
from workbench.measure import Options, score
from workbench.models import HFModel, load
from workbench.probes import PROBES, Probe
from workbench.prompts import Prompts
from workbench.rules import RULES, Rule
from workbench.scores import HeadScores

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
