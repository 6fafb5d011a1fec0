"""The trade-off report, derived from the ledger: the table of trials, the Pareto front, figures and the page."""

from stillhouse.report.comparison import Source, write_comparison
from stillhouse.report.files import ReportFiles
from stillhouse.report.page import write_report
from stillhouse.report.pareto import pareto_front
from stillhouse.report.trials_table import trials_table
from stillhouse.spec.size_bound import Budget, parse_budget

__all__ = [
    "Budget",
    "ReportFiles",
    "Source",
    "pareto_front",
    "parse_budget",
    "trials_table",
    "write_comparison",
    "write_report",
]
