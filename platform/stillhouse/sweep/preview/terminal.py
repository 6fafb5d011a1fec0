"""Prints a plan on the terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from stillhouse.spec.schema import DEFAULTS
from stillhouse.sweep.planning.cost import PlannedTeacher
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.planning.size_ranges import size_ranges
from stillhouse.text_table import TextTable


def print_plan(plan: Plan, console: Console) -> None:
    """Prints students with their sizes, trials per method, teachers, costs, and what is left out."""
    console.print(Text(plan.spec.name, style="bold") + Text(f": {plan.num_trials} trials{_confirm(plan)}"), soft_wrap=True)
    students = _table("student", "options", "parameters", "MACs", "bytes", "trials")
    for planned in plan.students:
        options = ", ".join([*(f"{name}={value}" for name, value in planned.student.options.items()), *planned.changes])
        size = planned.size
        about = "about " if planned.estimated else ""
        numbers = (size.parameters, size.macs, size.size_bytes)
        cells = (*(f"{about}{number:,}" for number in numbers), str(planned.trials))
        students.add_row(planned.student.name, options, *cells)
    students.print(console)
    _print_ranges(plan, console)
    counts = plan.trials_per_method
    methods = _table("method", "trials", "duplicates dropped")
    for method in plan.spec.methods or {}:
        methods.add_row(method, str(counts[method]), str(plan.duplicates.get(method, 0)))
    methods.print(console)
    if plan.teachers:
        teachers = _table("teacher", "model", "parameters", "MACs", "bytes", "used by trials", "weights")
        for teacher in plan.teachers:
            size = teacher.size
            used = f"{teacher.trials} + {teacher.derived} derived" if teacher.derived else str(teacher.trials)
            cells = (f"{size.parameters:,}", f"{size.macs:,}", f"{size.size_bytes:,}", used)
            teachers.add_row(teacher.name, teacher.model, *cells, _weights(teacher))
        teachers.print(console)
    cost = plan.cost
    for line in (
        *_start(plan),
        *_trainings(plan),
        f"students: {cost.students:.3g} MACs, a training step counted as three forward passes",
        f"teachers shared: {cost.teacher_shared:.3g} MACs for at most {cost.samples_forwarded:,} samples; "
        f"{cost.ratio_shared:.2f} times the students alone",
        f"teachers inside every trial: {cost.teacher_inside:.3g} MACs for at most {cost.samples_inside:,} samples; "
        f"{cost.ratio_inside:.2f} times the students alone",
        f"training the teachers, once: {cost.teacher_training:.3g} MACs",
        *(f"note: {note}" for note in plan.notes),
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _weights(teacher: PlannedTeacher) -> str:
    if not teacher.trains:
        return "given"
    return f"{teacher.start}, trained once" if teacher.start else "trained once"


def _print_ranges(plan: Plan, console: Console) -> None:
    """The smallest, median and largest planned students of each entry that has several."""
    ranges = size_ranges(plan.students)
    if not ranges:
        return
    table = _table("entry", "students", "size", "smallest", "median", "largest")
    labels = {"parameters": "parameters", "macs": "MACs", "size_bytes": "bytes"}
    for each in ranges:
        about = "about " if each.estimated else ""
        for metric, label in labels.items():
            numbers = (each.smallest[metric], each.median[metric], each.largest[metric])
            table.add_row(each.student, str(each.students), label, *(f"{about}{number:,.0f}" for number in numbers))
    table.print(console)


def print_lines(lines: Iterable[str], console: Console) -> None:
    """Prints lines without markup."""
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _confirm(plan: Plan) -> str:
    parts = [(plan.confirm_trials, "to confirm"), (plan.control_trials, "with untrained teachers")]
    return "".join(f", then up to {count} {what}" for count, what in parts if count)


def _start(plan: Plan) -> list[str]:
    if plan.spec.search.start != DEFAULTS:
        return []
    return ["each method and student starts at the method's defaults, with searched options of the student in the middle"]


def _trainings(plan: Plan) -> list[str]:
    """How students are trained, and the teachers that the sweep trains, by settings."""
    trained: dict[str, list[str]] = {}
    for who, training in (
        ("students", plan.spec.training),
        *((teacher.name, plan.spec.teachers[teacher.name].train) for teacher in plan.teachers if teacher.trains),
    ):
        trained.setdefault(training.words(), []).append(who)
    return [f"training of {', '.join(names)}: {words}" for words, names in trained.items()]


def _table(*columns: str) -> TextTable:
    words = ("options", "model", "weights", "size")
    return TextTable(columns, right=[name for number, name in enumerate(columns) if number and name not in words])
