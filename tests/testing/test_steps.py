import torch

from stillhouse.testing import make_step


def test_fields_that_a_test_does_not_give_have_defaults() -> None:
    step = make_step(student_logits=torch.zeros(3, 10), progress=0.5)
    assert step.labels.tolist() == [0, 0, 0]
    assert step.progress == 0.5
    assert make_step(student_logits=None, labels=torch.tensor([1])).student_logits is None
