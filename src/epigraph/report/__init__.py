"""Records on disk -> one self-contained HTML file. Imports nothing of the package but its errors."""

from epigraph.report.curve import training_curve_svg
from epigraph.report.fleet_page import write_fleet_report
from epigraph.report.page import write_report
from epigraph.report.records import Run, read_run

__all__ = ["Run", "read_run", "training_curve_svg", "write_fleet_report", "write_report"]
