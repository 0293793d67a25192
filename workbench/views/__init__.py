"""How do the results look? Figures and text from what others computed; nothing is computed here. The only part that imports plotly."""

from workbench.views.attention import attention_figure
from workbench.views.calibration import ACT_VARIANTS, found_panel, gain_canvas, held_out_figure, held_out_text, screening_figure
from workbench.views.canvas import canvas_picture, head_canvas, script, signed_canvas, token_canvas
from workbench.views.comparing import depth_figure, difference_canvas, versus_figure
from workbench.views.emergence import emergence_figure
from workbench.views.export import FIGURES, TABLES, camera, check_ending, figure_bytes, no_pictures, save_figure, save_table, table_bytes
from workbench.views.heads import Panel, head_map, panel, panel_picture, panels, text_map
from workbench.views.long_map import MARKS, block_canvas
from workbench.views.one_head import adds_figure, following_figure, head_table, lost_figure
from workbench.views.page import evidence_lines, evidence_text, save_html
from workbench.views.policy import bytes_text, memory_figure, policy_figure, speed_figure
from workbench.views.quality import PANELS, quality_figure, quality_panel
from workbench.views.recall import recall_figure, recall_map, recall_totals
from workbench.views.scores import agreement_figure, distribution_figure, pair_figure
from workbench.views.sinks import places_figure, sink_probes, sinks_panel
from workbench.views.successor import Standing, class_figure, class_table, residue_figure, standing, transfer_figure

__all__ = [
    "ACT_VARIANTS",
    "FIGURES",
    "MARKS",
    "PANELS",
    "TABLES",
    "Panel",
    "Standing",
    "adds_figure",
    "agreement_figure",
    "attention_figure",
    "block_canvas",
    "bytes_text",
    "camera",
    "canvas_picture",
    "check_ending",
    "class_figure",
    "class_table",
    "depth_figure",
    "difference_canvas",
    "distribution_figure",
    "emergence_figure",
    "evidence_lines",
    "evidence_text",
    "figure_bytes",
    "following_figure",
    "found_panel",
    "gain_canvas",
    "head_canvas",
    "head_map",
    "head_table",
    "held_out_figure",
    "held_out_text",
    "lost_figure",
    "memory_figure",
    "no_pictures",
    "pair_figure",
    "panel",
    "panel_picture",
    "panels",
    "places_figure",
    "policy_figure",
    "quality_figure",
    "quality_panel",
    "recall_figure",
    "recall_map",
    "recall_totals",
    "residue_figure",
    "save_figure",
    "save_html",
    "save_table",
    "screening_figure",
    "script",
    "signed_canvas",
    "sink_probes",
    "sinks_panel",
    "speed_figure",
    "standing",
    "table_bytes",
    "text_map",
    "token_canvas",
    "transfer_figure",
    "versus_figure",
]
