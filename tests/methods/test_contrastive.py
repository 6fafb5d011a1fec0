import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stillhouse.distill.method import MethodError, Setup, Step
from stillhouse.methods.contrastive import Contrastive, ContrastMemory, contrast_loss, draw_contrast
from stillhouse.models.architecture import Architecture
from stillhouse.testing import MethodTrial, ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]
NET = Architecture(name="net", num_classes=3, input_shape=(3, 8, 8), shapes={"pool": (8, 1, 1)}, pooled="pool")


def setup(num_samples: int = 12) -> Setup:
    labels = torch.arange(num_samples) % 3
    return Setup(teacher=NET, student=NET, new_student=nn.Identity, num_samples=num_samples, labels=labels, epochs=1)


def modules(method: Contrastive, num_samples: int = 12) -> dict[str, nn.Module]:
    return {name: helper.module for name, helper in method.modules(setup(num_samples)).items()}


def step(given: dict[str, nn.Module], *, teacher: Tensor | None = None, seed: int = 0) -> Step:
    generator = torch.Generator().manual_seed(1)
    return make_step(
        student_logits=torch.zeros(4, 3),
        labels=torch.tensor([0, 1, 2, 0]),
        student_features={"pool": torch.randn(4, 8, 1, 1, generator=generator)},
        teacher={"embedding": torch.randn(4, 8, 1, 1, generator=generator) if teacher is None else teacher},
        modules=given,
        seed=seed,
    )


def test_two_batches_equal_the_authors_implementation(open_case: Open) -> None:
    case = open_case("crd-repdistiller")
    dtype = case["in.s_feat0"].dtype
    num_samples, width = case["w.memory_v1"].shape
    memory = ContrastMemory(torch.zeros(num_samples, dtype=torch.int64), width).to(dtype)
    memory.student, memory.teacher = case["w.memory_v1"], case["w.memory_v2"]
    losses = []
    for number in case.numbers("in.s_feat"):
        student, teacher = (
            nn.functional.normalize(
                nn.functional.linear(case[f"in.{who}_feat{number}"], case[f"w.embed_{who}.weight"], case[f"w.embed_{who}.bias"])
            )
            for who in "st"
        )
        pair = memory.similarities(student, teacher, case[f"in.contrast_idx{number}"], case.number("T"))
        losses.append((contrast_loss(pair[0], num_samples) + contrast_loss(pair[1], num_samples)).reshape(1))
        case.check(losses[-1], f"out.loss_step{number}")
        memory.remember(case[f"in.y{number}"], student, teacher, case.number("momentum"))
    loss = losses[0] + losses[1]
    case.check(loss)
    case.check_gradients(loss, "s_feat0", "s_feat1")
    names = [f"embed_{who}.{part}" for who in "st" for part in ("weight", "bias")]
    for name, gradient in zip(names, torch.autograd.grad(loss, [case[f"w.{name}"] for name in names]), strict=True):
        case.check(gradient, f"grad.w.{name}")
    for number, name in enumerate(("student", "teacher"), start=1):
        case.check(getattr(memory, name), f"aux.memory_v{number}_after")
        case.check(memory.normalisers[number - 1], f"aux.Z_v{number}")


def test_the_loss_by_hand() -> None:
    # one positive at 1/2 and two negatives at 1/4 of M = 4: N / M = 1/2
    loss = contrast_loss(torch.tensor([[0.5, 0.25, 0.25]]), 4)
    assert float(loss) == pytest.approx(-math.log(1 / 2) - 2 * math.log(2 / 3), rel=1e-5)


def test_the_loss_falls_with_the_positive_and_grows_with_a_negative() -> None:
    similarities = torch.rand(3, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(contrast_loss(similarities, 10), similarities)
    assert bool((gradient[:, 0] < 0).all())
    assert bool((gradient[:, 1:] > 0).all())


def test_negatives_are_drawn_uniformly_from_other_classes() -> None:
    classes = torch.tensor([2, 0, 1, 0, 2, 1, 1, 0])
    drawn = draw_contrast(classes, torch.tensor([1, 4, 2]), torch.rand(3, 60_000))
    assert drawn[:, 0].tolist() == [1, 4, 2]
    for row, own in zip(drawn[:, 1:], (0, 2, 1), strict=True):
        counts = torch.bincount(row, minlength=8)
        others = classes != own
        assert int(counts[~others].sum()) == 0
        torch.testing.assert_close(
            counts[others] / len(row), torch.full((int(others.sum()),), 1 / int(others.sum())), atol=0.01, rtol=0
        )


def test_the_largest_draw_is_a_valid_sample_and_a_single_class_is_drawn_from_itself() -> None:
    almost_one = torch.full((2, 3), 1 - 2**-24)
    assert int(draw_contrast(torch.tensor([0, 1, 1]), torch.tensor([0, 1]), almost_one).max()) <= 2
    alone = draw_contrast(torch.zeros(4, dtype=torch.int64), torch.tensor([0, 3]), torch.rand(2, 50))
    assert set(alone[:, 1:].flatten().tolist()) == {0, 1, 2, 3}


def test_the_first_step_compares_no_sample_with_others_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def watched(classes: Tensor, indices: Tensor, uniform: Tensor) -> Tensor:
        contrast: Tensor = draw_contrast(classes, indices, uniform)
        drawn.append((indices, contrast))
        return contrast

    monkeypatch.setattr("stillhouse.methods.contrastive.draw_contrast", watched)
    trainer = MethodTrial(Contrastive(num_negatives=64), epochs=1).trainer()
    trainer.fit()
    labels = trainer.split.labels
    for indices, contrast in drawn:
        assert not bool((labels[contrast[:, 1:]] == labels[indices].unsqueeze(1)).any())
        assert torch.equal(contrast[:, 0], indices)
    assert len(torch.cat([indices for indices, _ in drawn]).unique()) == len(labels)


def test_a_step_updates_the_memory_of_its_samples_only_at_length_one() -> None:
    method = Contrastive(width=6)
    given = modules(method)
    memory = given["memory"]
    assert isinstance(memory, ContrastMemory)
    before = memory.student.clone()
    method.loss(step(given))
    torch.testing.assert_close(memory.student[:4].norm(dim=1), torch.ones(4))
    assert torch.equal(memory.student[4:], before[4:])
    assert bool((memory.normalisers > 0).all())


def test_the_normalisers_are_set_once() -> None:
    method = Contrastive(width=6)
    given = modules(method)
    memory = given["memory"]
    assert isinstance(memory, ContrastMemory)
    method.loss(step(given))
    first = memory.normalisers.clone()
    method.loss(step(given, seed=1))
    assert torch.equal(memory.normalisers, first)


def test_gradients_reach_both_embeddings_and_not_the_memory() -> None:
    method = Contrastive(width=6)
    given = modules(method)
    torch.stack(list(method.loss(step(given)).values())).sum().backward()
    for name in ("student_embedding", "teacher_embedding"):
        assert all(parameter.grad is not None for parameter in given[name].parameters())
    assert not any(buffer.requires_grad for buffer in given["memory"].buffers())


def test_equal_seeds_draw_equal_negatives_and_the_weight_scales_both_terms() -> None:
    totals = []
    for weight, seed in ((0.8, 0), (0.8, 0), (1.6, 0), (0.8, 1)):
        torch.manual_seed(0)
        method = Contrastive(width=6, contrast_weight=weight, num_negatives=5)
        terms = method.loss(step(modules(method), seed=seed))
        totals.append(float((terms["student_contrast"] + terms["teacher_contrast"]).detach()))
    assert totals[0] == totals[1] != totals[3]
    assert totals[2] == pytest.approx(2 * totals[0])


def test_a_memory_beyond_its_limit_is_rejected_with_its_size() -> None:
    with pytest.raises(
        MethodError, match="memory_limit_mb is 100, but the memory of 1000000 samples in 128 dimensions takes 1024"
    ):
        Contrastive(memory_limit_mb=100).modules(setup(1_000_000))


def test_the_memory_is_reported_with_the_helpers() -> None:
    trial = MethodTrial(Contrastive(width=6))
    embeddings = sum(
        (math.prod(net.shape(net.pooled or "")) + 1) * 6 for net in (trial.student_architecture, trial.teacher_architecture)
    )
    # Two vectors of 6 and an int64 class for each of 256 samples, and two normalisers.
    assert trial.trainer().helper_bytes == 256 * (2 * 6 * 4 + 8) + 2 * 4 + embeddings * 4


def test_the_memory_is_saved_but_never_trained() -> None:
    helper = Contrastive(width=6).modules(setup())["memory"]
    assert not helper.trainable
    assert set(helper.module.state_dict()) == {"student", "teacher", "classes", "normalisers"}


def test_with_weight_0_nothing_is_needed_built_or_computed() -> None:
    method = Contrastive(contrast_weight=0.0)
    assert method.knowledge(NET, NET) == {}
    assert method.modules(setup()) == {}
    assert list(method.loss(step({}))) == ["cross_entropy"]


def test_nan_outputs_of_the_teacher_make_the_loss_nan() -> None:
    method = Contrastive(width=6)
    terms = method.loss(step(modules(method), teacher=torch.full((4, 8, 1, 1), torch.nan)))
    assert bool(terms["teacher_contrast"].isnan())
