"""What every step of a run works with: names of its command, its spec, its views."""

from pathlib import Path

from stillhouse.data.datasets import load_dataset
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.planning.plan import make_plan
from stillhouse.sweep.planning.spec_check import check
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.run_context import RunContext, resume_command
from stillhouse.sweep.shutdown import ShutdownRequest

SPEC = {
    "name": "s",
    "dataset": {"name": "digits", "validation": 80, "options": {"limit": 240}},
    "views": {"policy": ["crop"], "count": 3},
    "students": ["mlp"],
    "methods": ["label_smoothing"],
}


def test_the_command_that_continues_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    home = tmp_path / "my home"
    assert resume_command(SweepHome(home, "s")) == f"stillhouse resume s --home '{home}'"


def test_the_spec_is_the_one_of_the_plan_and_the_views_are_those_of_the_training_split(tmp_path: Path) -> None:
    data = load_dataset("digits", validation=80, options={"limit": 240})
    sweep_home = SweepHome(tmp_path, "s")
    context = RunContext(
        plan=make_plan(check(SPEC), data),
        data=data,
        sweep_home=sweep_home,
        progress=Progress("s", quiet=True),
        shutdown=ShutdownRequest(sweep_home.stop_request),
    )
    assert set(context.spec.methods or ()) == {"scratch", "label_smoothing"}
    assert (context.views.count, context.views.num_samples) == (3, 160)
