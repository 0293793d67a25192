"""How do the results look? Figures and text from what others computed; nothing is computed here. The only part that imports plotly."""

from workbench.views.attention import attention_figure
from workbench.views.heads import Panel, head_map, panel, panels, text_map
from workbench.views.page import evidence_lines, evidence_text, save_html
from workbench.views.quality import quality_figure
from workbench.views.successor import class_figure

__all__ = [
    "Panel",
    "attention_figure",
    "class_figure",
    "evidence_lines",
    "evidence_text",
    "head_map",
    "panel",
    "panels",
    "quality_figure",
    "save_html",
    "text_map",
]
