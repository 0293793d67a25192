"""Which heads increment, and how? One head by class of words, the mod-10 features, steering by vector arithmetic, and cases that a head wins on text.

After Gould et al. 2023, Successor heads (2312.09230). The score of all heads is the probe `successor`.
"""

from workbench.successor.effects import Effects, direct_effects
from workbench.successor.features import AutoencoderSettings, Dictionary, Representations, autoencoder, nmf, represent
from workbench.successor.mod_ten import ModTen, compared, mod_ten
from workbench.successor.natural import KINDS, Kinds, kinds_by_head, numbered_listings, winning_cases
from workbench.successor.parts import held_out_pairs, put_together
from workbench.successor.residues import LinearProbe, Modal, agreement, left_out, linear_probe, modal, transfer
from workbench.successor.steering import at_random, greater_than, of_features, of_means, of_probe, steer, success_table
from workbench.successor.table import InClass, every_head, head_table, in_class, strongest

__all__ = [
    "KINDS",
    "AutoencoderSettings",
    "Dictionary",
    "Effects",
    "InClass",
    "Kinds",
    "LinearProbe",
    "ModTen",
    "Modal",
    "Representations",
    "agreement",
    "at_random",
    "autoencoder",
    "compared",
    "direct_effects",
    "every_head",
    "greater_than",
    "head_table",
    "held_out_pairs",
    "in_class",
    "kinds_by_head",
    "left_out",
    "linear_probe",
    "mod_ten",
    "modal",
    "nmf",
    "numbered_listings",
    "of_features",
    "of_means",
    "of_probe",
    "put_together",
    "represent",
    "steer",
    "strongest",
    "success_table",
    "transfer",
    "winning_cases",
]
