"""How is a whole run read by others? One report of all results of a place, as a page, as Markdown, or as a folder that opens in any browser."""

from workbench.views.report.building import report_of
from workbench.views.report.folder import MOST_SHARED, Shared, share
from workbench.views.report.markdown import markdown
from workbench.views.report.page import report_page
from workbench.views.report.parts import Report

__all__ = ["MOST_SHARED", "Report", "Shared", "markdown", "report_of", "report_page", "share"]
