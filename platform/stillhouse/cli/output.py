"""What several commands print. Facts go to stdout, everything else to stderr."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from stillhouse.spec.secret_masking import mask_command
from stillhouse.text_table import TextTable

if TYPE_CHECKING:
    from stillhouse.spec.metric import Metric

_PIPE_WIDTH = 160


def print_json(document: Any) -> None:
    """Prints one document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


def make_table(*columns: str, right: Sequence[str] = ()) -> TextTable:
    """An empty table with these headings.

    Args:
        right: the columns that are aligned to the right.
    """
    return TextTable(columns, right)


def make_console() -> Console:
    """A console on stdout: as wide as the terminal, or wide enough for every table in a pipe or a file."""
    return Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)


def command_line() -> str:
    """The command that started this process, as a shell accepts it, without secrets."""
    return mask_command([Path(sys.argv[0]).name, *sys.argv[1:]])


def difference_line(difference: Mapping[str, Any]) -> str:
    """One sealed view that differs from what the teacher computes now, or that is damaged."""
    what = f"teacher {difference['teacher']}: {difference['knowledge']} of view {difference['view']}"
    if "reason" in difference:
        return f"{what} is damaged ({difference['reason']}); it will be computed again"
    largest = f"{difference['largest_difference']:.3g} (sample {difference['sample']})"
    return f"{what} differs by up to {largest}; it will be computed again"


def metric_on(split: Literal["validation", "test"], document: Mapping[str, Any]) -> tuple[str, float] | None:
    """The task's metric in a document: its label and its value on one split; None where the document has none.

    A document has it as `validation_accuracy` or `test_accuracy`, with the name of the task's metric.
    """
    for name, value in document.items():
        if name.startswith(f"{split}_") and isinstance(value, int | float):
            return name.removeprefix(f"{split}_").replace("_", " "), value
    return None


def answer_line(answer: Mapping[str, Any], metric: "Metric") -> str:
    """One answer of the report: the best student within a size bound, the most accurate one, and so on."""
    bounds = answer["budget"]
    question = answer["question"] if bounds is None else " ".join(f"{name} <= {limit:g}" for name, limit in bounds.items())
    if answer["trial"] is None:
        return f"{question}: no finished student fits"
    interval = answer["test_interval"]
    seeds = answer["seeds"]
    alone = "one seed" if seeds == 1 else f"{seeds} equal seeds"
    spread = alone if interval is None else f"95% interval {interval[0]:.4f} to {interval[1]:.4f}, n = {seeds}"
    if of_split := answer.get("test_split_interval"):
        spread += f"; by the size of the test split {of_split[0]:.4f} to {of_split[1]:.4f}"
    sweep = f" of {answer['sweep']}" if "sweep" in answer else ""
    ties = len(answer["tied_with"])
    tied = f"; not significantly better than {ties} other{'s' * (ties > 1)}" if ties else ""
    level = len(answer.get("level_on_validation", ()))
    tied += f"; ties with {level} other{'s' * (level > 1)} on validation data" if level else ""
    return (
        f"{question}: {answer['student']} with {answer['method']}{sweep}, {answer['parameters']:,.0f} parameters, "
        f"test {answer[metric.column('test')]:.4f} ({spread}), trial {answer['trial']}{tied}"
    )
