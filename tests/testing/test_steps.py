import torch

from stillhouse.testing import make_step


def test_a_step_fills_in_what_a_test_does_not_care_for() -> None:
    step = make_step(student_logits=torch.zeros(3, 10), progress=0.5)
    assert step.labels.tolist() == [0, 0, 0]
    assert step.progress == 0.5
    assert make_step(student_logits=None, labels=torch.tensor([1])).student_logits is None
