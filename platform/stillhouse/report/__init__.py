"""The trade-off report, derived from the ledger: the table of trials, the Pareto front, figures and the page."""

from stillhouse.report.answers import best_student
from stillhouse.report.comparison import Source, write_comparison
from stillhouse.report.configurations import Configuration
from stillhouse.report.control_gains import gains_of_best, gains_to_json
from stillhouse.report.files import ReportFiles
from stillhouse.report.fronts import sweep_front, sweep_winners
from stillhouse.report.late_columns import robustness_names
from stillhouse.report.page import write_report
from stillhouse.report.pareto import pareto_front
from stillhouse.report.trials_table import trials_table
from stillhouse.spec.size_bound import Budget, parse_budget

__all__ = [
    "Budget",
    "Configuration",
    "ReportFiles",
    "Source",
    "best_student",
    "gains_of_best",
    "gains_to_json",
    "pareto_front",
    "parse_budget",
    "robustness_names",
    "sweep_front",
    "sweep_winners",
    "trials_table",
    "write_comparison",
    "write_report",
]
