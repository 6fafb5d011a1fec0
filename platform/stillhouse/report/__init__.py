"""The trade-off report: table, Pareto front, figures and the page, all views of the ledger."""

from stillhouse.report.answers import Budget, parse_budget
from stillhouse.report.page import ReportFiles, write_report
from stillhouse.report.pareto import pareto_front
from stillhouse.report.table import trials_table

__all__ = ["Budget", "ReportFiles", "pareto_front", "parse_budget", "trials_table", "write_report"]
