"""How fast networks are, by networks of which one does many times the other's work."""

import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from stillhouse.data.datasets import load_dataset
from stillhouse.data.targets import CLASS_LABELS
from stillhouse.distill.sources import compute_knowledge
from stillhouse.knowledge import input_gradient, output
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.models.features import FeatureReader
from stillhouse.spec.records import StudentChoice
from stillhouse.spec.schema import TeacherTraining
from stillhouse.spec.training import Training
from stillhouse.sweep.preview import speed
from stillhouse.sweep.preview.speed import Job, measure_speeds


def test_a_network_of_many_times_the_work_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[list[Knowledge]] = []

    def watched(reader: FeatureReader, kinds: Mapping[str, Knowledge], *arguments: Any) -> dict[str, torch.Tensor]:
        measured.append(list(kinds.values()))
        return compute_knowledge(reader, kinds, *arguments)

    monkeypatch.setattr(speed, "SECONDS_EACH", 0.05)
    monkeypatch.setattr(speed, "compute_knowledge", watched)
    data = load_dataset("digits", validation=100, options={"limit": 500})
    gradients = pickle.dumps([input_gradient()])
    few = StudentChoice(name="few", model="mlp", options={"hidden": [8]})
    many = StudentChoice(name="many", model="resnet8", options={"width": 1.0})
    jobs = [Job(few), Job(many), Job(many, gradients)]
    _, (small, large, teacher) = measure_speeds(jobs, data, Training(), ({"crop": {"padding": 1}},))
    assert 0 < small.forward < large.forward
    assert 0 < small.train < large.train
    assert large.teach == large.forward
    assert teacher.teach >= teacher.forward
    assert measured, "the backward pass was measured"
    assert all(kinds == [input_gradient()] for kinds in measured), "and for this network alone"


def test_a_generator_with_a_teachers_recipe_is_measured_on_an_excerpt_that_nothing_judged_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recipe has a length and a seed too, and the excerpt fewer samples than the metric needs."""
    monkeypatch.setattr(speed, "SECONDS_EACH", 0.05)
    data = load_dataset("digits", validation=100, options={"limit": 400}, task="generation", targets=CLASS_LABELS)
    small = speed._excerpt(data, 64)
    teacher = StudentChoice(name="big", model="dcgan", options={"width": 0.125})
    images = pickle.dumps([output("image")])
    _, (measured,) = measure_speeds([Job(teacher, images)], small, TeacherTraining(), ())
    assert measured.train > 0
    assert measured.teach >= measured.forward > 0
    assert small.prepared
