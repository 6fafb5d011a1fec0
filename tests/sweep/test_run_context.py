"""What every step of a run works with: names of its command, its spec, its views."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.run_context import RunContext, resume_command

MakeContext = Callable[[Mapping[str, Any]], RunContext]
SPEC = {
    "name": "s",
    "views": {"policy": ["crop"], "count": 3},
    "students": ["mlp"],
    "methods": ["label_smoothing"],
}


def test_the_command_that_continues_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    home = tmp_path / "my home"
    assert resume_command(SweepHome(home, "s")) == f"stillhouse resume s --home '{home}'"


def test_the_spec_is_the_one_of_the_plan_and_the_views_are_those_of_the_training_split(make_context: MakeContext) -> None:
    context = make_context(SPEC)
    assert set(context.spec.methods or ()) == {"scratch", "label_smoothing"}
    assert (context.views.count, context.views.num_samples) == (3, 160)
