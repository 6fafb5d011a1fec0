from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from stillhouse.distill.method import MethodError, Setup, Unsuitable
from stillhouse.methods.mgd import MGD, Matching, channel_margins, match_channels, matching_cost, reduce_channels
from stillhouse.methods.overhaul import batch_norm_margin, partial_l2
from stillhouse.models.architecture import Architecture
from stillhouse.testing import MethodTrial, ReferenceCase, make_step

Open = Callable[[str], ReferenceCase]
Reducer = Literal["absolute_max_pooling", "random_drop", "max_pooling", "sparse_matching"]
CASES: dict[str, Reducer] = {
    "mgd-amp": "absolute_max_pooling",
    "mgd-rd": "random_drop",
    "mgd-sm": "sparse_matching",
    "mgd-sp-max": "max_pooling",
}


def architecture(*shapes: tuple[int, ...]) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    return Architecture(name="net", num_classes=10, input_shape=(3, 32, 32), shapes=layers, stages=tuple(layers))


def close(case: ReferenceCase, result: Tensor, name: str) -> None:
    """Equal up to the error of the reference, which rounds margins to float32."""
    double = result.dtype == torch.float64
    reference = case[f"{name}.{'f64' if double else 'f32'}"].to(result.dtype)
    share = 1e-8 if double else 1e-6
    torch.testing.assert_close(
        result.detach(), reference, rtol=1e-7 if double else 2e-5, atol=share * float(reference.abs().max())
    )


@pytest.mark.parametrize("name", CASES)
def test_costs_matchings_and_loss_equal_the_authors_code(open_case: Open, name: str) -> None:
    case = open_case(name)
    losses = []
    layers = case.numbers("in.s_feat")
    for layer in layers:
        student, teacher = case[f"in.s_feat{layer}"], case[f"in.t_feat{layer}"]
        batches = [number for number in range(100) if case.has(f"in.track_s{number}_{layer}")]
        tracked = [torch.cat([case[f"in.track_{who}{batch}_{layer}"] for batch in batches]) for who in "st"]
        cost = matching_cost(*tracked)
        close(case, cost, f"aux.cost{layer}")
        groups = 1 if name == "mgd-sm" else teacher.shape[1] // student.shape[1]
        matching = case[f"out.flow_index{layer}"].reshape(groups, -1)
        # The group of a teacher channel is arbitrary, but not the student channel that it belongs to.
        assert torch.equal(match_channels(cost, groups).sort(0).values, matching.sort(0).values)

        close(
            case,
            batch_norm_margin(case[f"w.tbn{layer}.weight"], case[f"w.tbn{layer}.bias"])[None, :, None, None],
            f"aux.margin{layer}",
        )
        suffix = "f64" if student.dtype == torch.float64 else "f32"
        margins = case[f"aux.margin{layer}.{suffix}"].to(student.dtype)
        norm = nn.BatchNorm2d(student.shape[1]).to(student.dtype)
        weights = {"weight": case[f"w.bn{layer}.weight"], "bias": case[f"w.bn{layer}.bias"]}
        normalised = torch.func.functional_call(norm, weights, (student,))
        draws = margin_draws = None
        if name == "mgd-rd":
            draws = case[f"rnd.t_mask{layer}"].reshape(student.shape)
            margin_draws = case[f"rnd.m_mask{layer}"]
        target = reduce_channels(teacher, matching, CASES[name], draws)
        close(case, target, f"aux.t_reduced{layer}")
        if name == "mgd-amp":
            reduced_margins = margins[:, matching.flatten()].unflatten(1, matching.shape).mean(dim=1)
        else:
            reduced_margins = reduce_channels(margins, matching, CASES[name], margin_draws)
        close(case, reduced_margins, f"aux.m_reduced{layer}")
        losses.append(partial_l2(normalised, torch.maximum(target, reduced_margins)))
    loss = torch.stack([loss / 2 ** (len(layers) - 1 - layer) for layer, loss in enumerate(losses)]).sum()
    close(case, loss / case.number("loss_factor"), "out.scaled")
    raw = len(case["in.s_feat0"]) * loss
    close(case, raw, "out.loss")
    names = ("in.s_feat0", "in.s_feat1", "w.bn0.weight", "w.bn1.bias")
    for source, gradient in zip(names, torch.autograd.grad(raw, [case[source] for source in names]), strict=True):
        close(case, gradient, f"grad.{source.removeprefix('in.')}")


def test_the_cost_is_the_squared_distance_of_normalised_channels() -> None:
    student, teacher = torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randn(5, 6, 4, 4, dtype=torch.float64)
    ours, theirs = (F.normalize(maps.flatten(2), dim=2) for maps in (student, teacher))
    expected = (ours[:, :, None] - theirs[:, None]).square().sum(3).mean(0)
    torch.testing.assert_close(matching_cost(student, teacher), expected)


def test_shuffled_copies_of_the_students_channels_are_matched() -> None:
    student = torch.randn(8, 4, 5, 5)
    order = torch.tensor([2, 0, 3, 1])
    teacher = torch.cat([3 * student[:, order], 0.5 * student[:, order]], dim=1)
    matching = match_channels(matching_cost(student, teacher), 2)
    for channel in range(4):
        assert sorted(int(order[place % 4]) for place in matching[:, channel]) == [channel, channel]


def test_a_matching_uses_no_channel_twice_and_leaves_out_the_worst() -> None:
    cost = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    cost[:, 2] = 10.0
    matching = match_channels(cost, 2)
    assert matching.shape == (2, 3)
    assert len(set(matching.flatten().tolist())) == 6
    assert 2 not in matching
    rows, columns = linear_sum_assignment(cost.repeat(2, 1).numpy())
    total = sum(float(cost[channel, place]) for row in matching for channel, place in enumerate(row.tolist()))
    assert total == pytest.approx(float(cost.repeat(2, 1).numpy()[rows, columns].sum()))


def test_every_reduction_by_hand() -> None:
    maps = torch.tensor([1.0, -3.0, 2.0, 0.5]).reshape(1, 4, 1, 1)
    matching = torch.tensor([[0, 3], [1, 2]])
    assert reduce_channels(maps, matching, "absolute_max_pooling").flatten().tolist() == [-3.0, 2.0]
    assert reduce_channels(maps, matching, "max_pooling").flatten().tolist() == [1.0, 2.0]
    draws = torch.tensor([1, 0]).reshape(1, 2, 1, 1)
    assert reduce_channels(maps, matching, "random_drop", draws).flatten().tolist() == [-3.0, 0.5]
    assert reduce_channels(maps, matching[:1], "sparse_matching").flatten().tolist() == [1.0, 0.5]


def test_a_matching_is_refreshed_on_schedule_from_the_previous_epoch() -> None:
    first, second = torch.eye(2).reshape(1, 2, 1, 2), torch.eye(2).flip(0).reshape(1, 2, 1, 2)
    module = Matching(2, 2, 1)
    seen = []
    for epoch in range(5):
        for _ in range(2):
            module.observe(first, first if epoch == 0 else second, epoch, 2)
            seen.append(module.matching.flatten().tolist())
    # Matched in epoch 0 on its own batches; at epoch 2 on all of epoch 1; at epoch 4 on all of epoch 3.
    assert seen == [[0, 1]] * 4 + [[1, 0]] * 6
    assert int(module.refreshed) == 4


def test_in_the_first_epoch_the_matching_follows_the_batches_so_far() -> None:
    straight, crossed = torch.eye(2).reshape(1, 2, 1, 2), torch.eye(2).flip(0).reshape(1, 2, 1, 2)
    module = Matching(2, 2, 1)
    seen = []
    for teacher in (crossed, straight, straight, straight, crossed):
        module.observe(straight, teacher, 0, 3)
        seen.append(module.matching.flatten().tolist())
    # After 1, 2 and 4 batches: crossed, a tie, and three of four straight ones; the fifth batch is no power of two.
    assert (seen[0], seen[3], seen[4]) == ([1, 0], [0, 1], [0, 1])
    assert seen[2] == seen[1]


@pytest.mark.parametrize("reducer", list(CASES.values()))
def test_every_reduction_trains(reducer: Reducer) -> None:
    trial = MethodTrial(MGD(reducer=reducer, feature_weight=0.001, refresh_epochs=2), epochs=1)
    (entry,) = trial.trainer(policy=()).fit()
    assert entry["features"] > 0


def test_random_drops_are_the_same_in_every_run() -> None:
    maps = torch.randn(2, 4, 3, 3)
    module = nn.ModuleList([Matching(2, 4, 2)])
    terms = [
        MGD(reducer="random_drop", feature_weight=1.0).loss(
            make_step(
                student_logits=torch.zeros(2, 10),
                student_features={"a": maps[:, :2]},
                teacher={"maps.a": maps, "margins.a": torch.full((2, 4), -1.0)},
                modules={"matchings": module},
                seed=seed,
            )
        )["features"]
        for seed in (7, 7, 8)
    ]
    assert terms[0] == terms[1]
    assert terms[0] != terms[2]


def test_margins_are_knowledge_or_come_from_data() -> None:
    with pytest.raises(MethodError, match="needs a BatchNorm right before layer 'stage0'"):
        MGD().knowledge(architecture((16, 8, 8)), architecture((6, 8, 8)))
    needed = MGD(margins="data").knowledge(architecture((16, 8, 8)), architecture((6, 4, 4)))
    assert list(needed) == ["maps.stage0"]
    assert needed["maps.stage0"].compute(torch.zeros(2, 10), {"stage0": torch.randn(2, 16, 8, 8)}).shape == (2, 16, 4, 4)
    assert channel_margins(torch.zeros(3, 2, 4, 4), torch.ones(2), torch.zeros(2)).shape == (3, 2)


def test_a_wider_student_does_not_suit() -> None:
    with pytest.raises(Unsuitable, match=r"at least as many channels in the teacher's layer 'stage0' .16. as in the student's"):
        MGD().pairs(architecture((16, 8, 8)), architecture((20, 8, 8)))


def test_without_a_common_multiple_each_student_channel_has_the_rounded_down_number() -> None:
    teacher, student = architecture((16, 8, 8)), architecture((6, 8, 8))
    setup = Setup(teacher=teacher, student=student, new_student=nn.Identity, num_samples=10, epochs=2)
    for reducer, groups in (("absolute_max_pooling", 2), ("sparse_matching", 1)):
        module = MGD(reducer=reducer).modules(setup)["matchings"].module
        assert isinstance(module, nn.ModuleList)
        assert module[0].matching.shape == (groups, 6)


def test_with_weight_0_nothing_is_needed_and_only_the_labels_are_used() -> None:
    maps = architecture((16, 8, 8))
    assert MGD(feature_weight=0).knowledge(maps, maps) == {}
    assert list(MGD(feature_weight=0).loss(make_step(student_logits=torch.randn(2, 10)))) == ["cross_entropy"]
