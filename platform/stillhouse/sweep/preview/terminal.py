"""Prints a plan on the terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from stillhouse.sweep.planning.plan import Plan


def print_plan(plan: Plan, console: Console) -> None:
    """Prints students with their sizes, trials per method, teachers, costs, and what is left out."""
    console.print(f"[bold]{plan.spec.name}[/]: {plan.num_trials} trials" + _confirm(plan), highlight=False)
    students = _table("student", "options", "parameters", "MACs", "bytes", "trials")
    for planned in plan.students:
        options = ", ".join(f"{name}={value}" for name, value in planned.student.options.items())
        size = planned.size
        cells = (f"{size.parameters:,}", f"{size.macs:,}", f"{size.size_bytes:,}", str(planned.trials))
        students.add_row(planned.student.name, options, *cells)
    console.print(students)
    counts = plan.trials_per_method
    methods = _table("method", "trials", "duplicates dropped")
    for method in plan.spec.methods or {}:
        methods.add_row(method, str(counts[method]), str(plan.duplicates.get(method, 0)))
    console.print(methods)
    if plan.teachers:
        teachers = _table("teacher", "model", "parameters", "MACs", "bytes", "used by trials", "weights")
        for teacher in plan.teachers:
            size = teacher.size
            cells = (f"{size.parameters:,}", f"{size.macs:,}", f"{size.size_bytes:,}", str(teacher.trials))
            teachers.add_row(teacher.name, teacher.model, *cells, "trained once" if teacher.trains else "given")
        console.print(teachers)
    cost = plan.cost
    for line in (
        f"students: {cost.students:.3g} MACs, a training step counted as three forward passes",
        f"teachers shared: {cost.teacher_shared:.3g} MACs for at most {cost.samples_forwarded:,} samples; "
        f"{cost.ratio_shared:.2f} times the students alone",
        f"teachers inside every trial: {cost.teacher_inside:.3g} MACs for at most {cost.samples_inside:,} samples; "
        f"{cost.ratio_inside:.2f} times the students alone",
        f"training the teachers, once: {cost.teacher_training:.3g} MACs",
        *(f"note: {note}" for note in plan.notes),
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def print_lines(lines: Iterable[str], console: Console) -> None:
    """Prints lines without markup."""
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _confirm(plan: Plan) -> str:
    return f", then up to {plan.confirm_trials} to confirm" if plan.confirm_trials else ""


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        words = number == 0 or column in ("options", "model", "weights")
        table.add_column(column, justify="left" if words else "right", overflow="fold")
    return table
