"""A trial's side of its teacher: the form of its knowledge, and the weights that it runs inline."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.errors import InfrastructureError
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.knowledge import logits
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.knowledge.top_k import TopK
from stillhouse.models.weights import save_weights
from stillhouse.teachers import trial_teacher
from stillhouse.teachers.definition import view_identity
from stillhouse.teachers.ticket import TeacherTicket
from stillhouse.teachers.trial_teacher import TrialTeacher, weights_here


def test_a_trial_reads_logits_of_every_class_whatever_form_they_are_stored_in(tmp_path: Path, ticket: TeacherTicket) -> None:
    definition = dataclasses.replace(ticket.definition, num_classes=100)
    ticket = dataclasses.replace(ticket, definition=definition, home=HomeAddress(path=str(tmp_path)), top_k=TopK(3))
    kind = ticket.form(logits())
    assert kind != logits()
    ticket = dataclasses.replace(ticket, modes={kind.id: "cached"})
    values = torch.randn(6, 100, generator=torch.Generator().manual_seed(0))
    with KnowledgeStore(tmp_path / "knowledge").writer(
        view_identity({}, kind, 0), rows=6, shape=(7,), dtype="float32"
    ) as writer:
        writer.put(np.arange(6), kind.compute(values, {}).numpy())
        writer.commit()
        writer.seal()
    source = TrialTeacher(ticket, {"logits": logits()}).source
    assert source is not None
    source.begin_epoch(0)
    gathered = source.gather(torch.tensor([4, 1]), torch.empty(0))["logits"]
    assert gathered.shape == (2, 100)
    assert torch.equal(gathered.topk(3).values, values[[4, 1]].topk(3).values)


@pytest.fixture
def weights(tmp_path: Path, ticket: TeacherTicket) -> tuple[TeacherTicket, Path]:
    """A ticket of a teacher that the actor has loaded, and its weights on this node."""
    path = tmp_path / "weights.safetensors"
    digest = save_weights(ticket.definition.build(), path)
    return dataclasses.replace(ticket, weights_path=str(path), weights_hash=digest), path


def test_the_weights_of_a_trial_are_those_that_the_actor_has_loaded(weights: tuple[TeacherTicket, Path]) -> None:
    ticket, path = weights
    assert weights_here(ticket) == path


@pytest.mark.parametrize("harm", ["another training", "cut off", "gone"])
def test_other_weights_are_refused(weights: tuple[TeacherTicket, Path], harm: str) -> None:
    """Whole and of the right shapes, but another teacher than the one whose knowledge others read."""
    ticket, path = weights
    if harm == "another training":
        save_weights(ticket.definition.build(), path)
    elif harm == "cut off":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        path.unlink()
    with pytest.raises(InfrastructureError, match="no longer holds the weights that teacher 'big' was loaded from"):
        weights_here(ticket)


@pytest.mark.parametrize("copy", ["none", "of another training"])
def test_a_node_without_the_right_copy_of_the_weights_fetches_it(
    weights: tuple[TeacherTicket, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy: str
) -> None:
    ticket, path = weights
    here = tmp_path / "here" / "weights.safetensors"
    if copy != "none":
        save_weights(ticket.definition.build(), here)

    class Node:
        def here(self, _path: str) -> Path:
            return here

        def pull(self, wanted: Path) -> None:
            wanted.parent.mkdir(exist_ok=True)
            shutil.copy(path, wanted)

    monkeypatch.setattr(trial_teacher, "node_home", lambda _address: Node())
    found = weights_here(dataclasses.replace(ticket, home=HomeAddress(path=str(tmp_path))))
    assert found == here
    assert found.read_bytes() == path.read_bytes()
