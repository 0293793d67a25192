"""What to change in a forward pass, as data. `Ablate` takes heads out of action, `Calibrate` scales sinks, `Stream` shows a short cache.

Edits are frozen dataclasses. What a pass must remember for the next one (chunks, decoding) is kept in a `Memory`, never in the edit.
"""

from workbench.edits._edit import BaseEdit, Memory, Scene
from workbench.edits.ablate import KINDS, PHASES, Ablate, Reference
from workbench.edits.calibrate import FIND, Calibrate
from workbench.edits.sinks import RULES, SinkRule
from workbench.edits.stream import Stream

Edit = Ablate | Calibrate | Stream

__all__ = ["FIND", "KINDS", "PHASES", "RULES", "Ablate", "BaseEdit", "Calibrate", "Edit", "Memory", "Reference", "Scene", "SinkRule", "Stream"]
