"""What to change in a forward pass, as data: heads (`Ablate`), sinks (`Calibrate`), the cache (`Stream`), the share of spans (`Redistribute`).

Edits are frozen dataclasses. What a pass must remember for the next one (chunks, decoding) is kept in a `Memory`, never in the edit.
"""

from workbench.edits._edit import BaseEdit, Memory, Scene
from workbench.edits.ablate import KINDS, PHASES, Ablate, Reference
from workbench.edits.calibrate import FIND, Calibrate
from workbench.edits.redistribute import Redistribute
from workbench.edits.sinks import RULES, SinkRule
from workbench.edits.stream import Stream

Edit = Ablate | Calibrate | Stream | Redistribute

__all__ = ["FIND", "KINDS", "PHASES", "RULES", "Ablate", "BaseEdit", "Calibrate", "Edit", "Memory", "Redistribute", "Reference", "Scene", "SinkRule", "Stream"]
