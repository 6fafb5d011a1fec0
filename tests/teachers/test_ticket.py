"""What a trial is given to use a teacher."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.home_access.home_address import HomeAddress
from stillhouse.knowledge import feature, logits
from stillhouse.knowledge.top_k import TopK
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.ticket import FillPlan, TeacherTicket


def test_a_view_is_filled_with_what_some_trial_reads_of_it() -> None:
    plan = FillPlan.make([(logits(), [0, 1]), (feature("relu1"), [1, 2])])
    kinds = {view: [str(kind) for kind in plan.kinds(view)] for view in range(4)}
    assert kinds == {0: ["logits"], 1: ["logits", "relu1"], 2: ["relu1"], 3: []}


def test_a_plan_without_knowledge_fills_nothing() -> None:
    assert FillPlan().kinds(0) == []


@pytest.mark.parametrize(("top_k", "logits_form"), [(None, "logits"), (TopK(3, 0), "top_k(logits)")])
def test_only_logits_are_requested_in_a_smaller_form(
    make_definition: Callable[..., TeacherDefinition], tmp_path: Path, top_k: TopK | None, logits_form: str
) -> None:
    ticket = TeacherTicket(
        definition=make_definition(),
        weights_path="weights",
        weights_hash="hash",
        base={},
        actor="teacher-1",
        home=HomeAddress(path=str(tmp_path)),
        top_k=top_k,
    )
    assert (str(ticket.form(logits())), str(ticket.form(feature("relu1")))) == (logits_form, "relu1")
