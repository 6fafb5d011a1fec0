"""Text classification: it passes the conformance suite, batches are cut to their longest text, and its methods are found."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("tokenizers")

from stillhouse import methods, tasks
from stillhouse.data.views import Views
from stillhouse.distill.method import serves_task
from stillhouse.spec.metric import ACCURACY
from stillhouse.tasks.text_classification import trimmed
from stillhouse.testing import TASK_CHECKS, TaskTrial
from stillhouse.testing.grounds.text_classification import texts
from stillhouse.testing.tasks import check_task

TASK = tasks.find("text_classification")


@pytest.mark.parametrize("check", TASK_CHECKS)
@pytest.mark.parametrize("model", ["text_cnn", "bilstm", "text_transformer"])
def test_it_passes_every_check(check: str, model: str) -> None:
    TASK_CHECKS[check](TaskTrial(TASK, texts(), model))


def test_the_suite_reads_a_table_by_its_folder(tmp_path: Path) -> None:
    rows = [f"word{number % 7} {('awful', 'lovely')[number % 2]},{number % 2}" for number in range(120)]
    (tmp_path / "all.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    check_task("text_classification", "text_table", model="text_cnn", root=tmp_path, options={"vocabulary": 300})


def test_it_is_classification_in_all_but_its_inputs() -> None:
    assert TASK.metric == ACCURACY
    assert TASK.kinds == ("text_classification", "classification")
    assert tasks.find().kinds == ("classification",)
    assert not TASK.mixes


def test_a_batch_is_read_as_far_as_its_longest_text() -> None:
    ids = torch.zeros(4, 50, dtype=torch.int32)
    ids[0, :3], ids[1, :17] = 5, 6
    assert trimmed(ids).shape == (4, 32)
    assert trimmed(ids[:1]).shape == (1, 16)
    assert trimmed(ids[2:]).shape == (2, 16)
    assert trimmed(ids[:0]).shape == (0, 16)
    ids[3] = 7
    assert trimmed(ids).shape == (4, 50)
    assert trimmed(ids).dtype == torch.int64


def test_training_and_evaluation_read_the_same_texts() -> None:
    data = texts()
    places = torch.tensor([5, 0, 9])
    views = Views((), 1, data.input_shape, len(data.train))
    read = TASK.inputs(data, views, data.train.images, places, 0)
    assert torch.equal(read, TASK.evaluation_inputs(data, data.train.images[places], places))
    width = read.shape[1]
    assert torch.equal(read, data.train.images[places, :width].long())
    assert not data.train.images[places, width:].any()


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("scratch", True),
        ("kd", True),
        ("decoupled", True),
        ("relational", True),
        ("hidden_states", True),
        ("boundary_samples", False),
        ("data_free_learning", False),
        ("gradient_attention", False),
    ],
)
def test_methods_that_differentiate_or_generate_inputs_do_not_serve_texts(name: str, served: bool) -> None:
    assert serves_task(methods.make(name) if hasattr(methods, "make") else methods.find(name)(), TASK) is served


def test_hidden_states_serve_no_images() -> None:
    assert not serves_task(methods.find("hidden_states")(), tasks.find())
