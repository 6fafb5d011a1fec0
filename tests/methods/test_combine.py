import pytest
import torch
import torch.nn.functional as F

from stillhouse import methods
from stillhouse.distill.method import Method, MethodError, Stage, Unsuitable
from stillhouse.methods.attention_transfer import AttentionTransfer
from stillhouse.methods.combine import Combine, Layers
from stillhouse.methods.fitnets import FitNets, softened_cross_entropy
from stillhouse.methods.kd import KD, kd_loss
from stillhouse.methods.noisy_teacher import NoisyTeacher
from stillhouse.models.architecture import Architecture
from stillhouse.testing import CHECKS, MethodTrial, make_step


def architecture(*shapes: tuple[int, ...]) -> Architecture:
    layers = {f"stage{number}": shape for number, shape in enumerate(shapes)}
    return Architecture(name="net", num_classes=10, input_shape=(1, 8, 8), shapes=layers, stages=tuple(layers))


def test_cross_entropy_is_added_once_and_each_part_with_its_weight() -> None:
    student, logits = torch.randn(4, 10), torch.randn(4, 10)
    features, attention = torch.randn(4, 3, 8, 8), torch.rand(4, 8, 8)
    step = make_step(
        student_logits=student,
        student_features={"stage0": features, "of_another": torch.randn(4, 3, 8, 8)},
        teacher={"kd.logits": logits, "attention_transfer.attention.stage0": attention},
        modules={"layers": Layers({"kd": (), "attention_transfer": ("stage0",)})},
    )
    terms = Combine(weights=(2.0, 0.5)).loss(step)
    alone = make_step(
        student_logits=student, student_features={"stage0": features}, teacher={"attention.stage0": attention, "logits": logits}
    )
    assert list(terms) == ["cross_entropy", "kd.kd", "attention_transfer.attention"]
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(student, step.labels))
    torch.testing.assert_close(terms["kd.kd"], 2.0 * KD().kd_weight * kd_loss(student, logits, KD().temperature))
    torch.testing.assert_close(terms["attention_transfer.attention"], 0.5 * AttentionTransfer().loss(alone)["attention"])


def test_a_single_part_trains_the_same_student_as_its_method() -> None:
    # kd with weight 1 has no term for the labels, so the loss is cross-entropy with weight 1 plus the soft targets.
    combined = MethodTrial(Combine(methods=("kd",), settings=("kd.kd_weight=1",)), epochs=1).trainer()
    (entry,) = combined.fit()
    assert entry["train_loss"] == pytest.approx(entry["cross_entropy"] + entry["kd.kd"])


def test_knowledge_and_helpers_have_the_parts_names_as_prefix() -> None:
    maps = architecture((4, 8, 8), (8, 4, 4))
    needed = Combine().knowledge(maps, maps)
    assert set(needed) == {"kd.logits", "attention_transfer.attention.stage0", "attention_transfer.attention.stage1"}
    assert needed["kd.logits"] == KD().knowledge(maps, maps)["logits"]
    trainer = MethodTrial(Combine(methods=("kd", "variational"))).trainer()
    names = {name for name in trainer._modules if name != "layers"}
    assert names
    assert all(name.startswith("variational.regressor.") for name in names)


def test_helpers_of_the_parts_are_trained_and_two_parts_may_read_the_same_layers() -> None:
    method = Combine(methods=("attention_transfer", "variational"), weights=(0.1, 1.0))
    trainer = MethodTrial(method, epochs=1).trainer()
    before = {name: weight.clone() for name, weight in trainer._modules["variational.regressor.relu2"].named_parameters()}
    (entry,) = trainer.fit()
    assert {"attention_transfer.attention", "variational.information"} <= entry.keys()
    after = dict(trainer._modules["variational.regressor.relu2"].named_parameters())
    assert not any(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_part_of_weight_0_needs_nothing_and_changes_nothing() -> None:
    maps = architecture((4, 8, 8))
    method = Combine(weights=(1.0, 0.0))
    assert set(method.knowledge(maps, maps)) == {"kd.logits"}
    assert method.student_layers(maps, maps) == []


def test_parts_have_separate_random_draws() -> None:
    student, logits = torch.randn(8, 10), torch.randn(8, 10)
    modules = {"layers": Layers({"noisy_teacher": ()})}
    step = make_step(student_logits=student, teacher={"noisy_teacher.logits": logits}, modules=modules, seed=3)
    combined = Combine(methods=("noisy_teacher",)).loss(step)["noisy_teacher.logit_regression"]
    alone = NoisyTeacher().loss(make_step(student_logits=student, teacher={"logits": logits}, seed=3))["logit_regression"]
    assert float(combined) != float(alone)
    assert float(Combine(methods=("noisy_teacher",)).loss(step)["noisy_teacher.logit_regression"]) == float(combined)


def test_settings_reach_the_parts() -> None:
    parts = Combine(settings=("kd.temperature=2", "attention_transfer.form=code")).parts
    assert parts == {"kd": KD(temperature=2), "attention_transfer": AttentionTransfer(form="code")}


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.find(name).step is not Method.step])
def test_a_method_with_its_own_step_is_rejected(name: str) -> None:
    with pytest.raises(MethodError, match=f"cannot combine '{name}': it changes more than the loss"):
        Combine(methods=("kd", name))


STAGED = ("kd", "fitnets", "fsp", "activation_boundaries", "factor_transfer")


def test_first_stages_come_one_after_another_and_the_rest_of_the_epochs_is_shared() -> None:
    stages = MethodTrial(Combine(methods=STAGED), epochs=20).trainer().stages
    # Shares of 0.3, 0.25, 0.25 and 0.1 of 20 epochs.
    assert [(stage.name, stage.epochs, stage.comparable) for stage in stages] == [
        ("fitnets.hint", 6, False),
        ("fsp.flow", 5, False),
        ("activation_boundaries.boundaries", 5, False),
        ("factor_transfer.paraphraser", 2, False),
        ("train", 2, True),
    ]


def test_a_stage_gathers_what_its_part_reads_and_the_last_what_all_parts_read() -> None:
    trial = MethodTrial(Combine(methods=("kd", "fitnets")), epochs=4)
    first, last = trial.trainer().stages
    assert first.knowledge == ("fitnets.hint",)
    assert first.until == FitNets().layers(trial.teacher_architecture, trial.student_architecture)[1]
    assert last.knowledge == ("kd.logits", "fitnets.logits")


def test_in_its_first_stage_a_part_trains_as_it_does_by_itself() -> None:
    alone = MethodTrial(FitNets(hint_fraction=0.5), epochs=4).trainer()
    combined = MethodTrial(Combine(methods=("kd", "fitnets"), settings=("fitnets.hint_fraction=0.5",)), epochs=4).trainer()
    for _ in range(2):
        entry = combined.run_epoch()
        assert entry["fitnets.hint"] == pytest.approx(alone.run_epoch()["hint"], rel=0.2)
        assert "cross_entropy" not in entry
        assert "kd.kd" not in entry
    assert {"cross_entropy", "kd.kd", "fitnets.soft_cross_entropy"} <= set(combined.run_epoch())


def test_in_the_shared_stage_a_part_receives_its_own_last_stage() -> None:
    stages = {"kd": [Stage(epochs=4)], "fitnets": [Stage(name="hint", epochs=1), Stage(name="distill", epochs=3)]}
    student, logits = torch.randn(4, 10), torch.randn(4, 10)
    step = make_step(
        student_logits=student,
        teacher={"kd.logits": logits, "fitnets.logits": logits},
        modules={"layers": Layers({"kd": (), "fitnets": ()}, stages)},
        stage=Stage(epochs=3),
        progress=0.5,
        stage_progress=1 / 3,
    )
    method = Combine(methods=("kd", "fitnets"), settings=('kd.weight_schedule="linear_decay"',))
    terms = method.loss(step)
    # lambda falls from 4 to 1 over the shared stage; kd begins there, so its weight falls from 0.9 to 0 over it, too.
    soft = softened_cross_entropy(student, logits, FitNets().temperature)
    torch.testing.assert_close(terms["fitnets.soft_cross_entropy"], 3.0 * soft)
    torch.testing.assert_close(terms["kd.kd"], 0.9 * (2 / 3) * kd_loss(student, logits, KD().temperature))


def test_parts_keep_the_rate_and_the_bound_of_their_stages() -> None:
    flow, shared = MethodTrial(Combine(methods=("fsp", "noisy_teacher"))).trainer().stages
    assert (flow.rate_factor, flow.gradient_clip, shared.rate_factor, shared.gradient_clip) == (0.01, 5.0, 1.0, 5.0)
    bounds = [
        MethodTrial(Combine(methods=parts)).trainer().stages[0].gradient_clip for parts in (("kd", "noisy_teacher"), ("kd",))
    ]
    assert bounds == [5.0, None]


def test_without_first_stages_the_stage_names_no_knowledge() -> None:
    (stage,) = MethodTrial(Combine()).trainer().stages
    assert stage.knowledge is None


def test_staged_parts_are_trained_saved_and_loaded_like_any_method() -> None:
    trial = MethodTrial(Combine(methods=STAGED), epochs=8)
    for check in ("losses_and_gradients_are_finite", "inline_and_cached_knowledge_train_the_same_student"):
        CHECKS[check](trial)
    CHECKS["a_resumed_training_ends_with_the_same_weights"](MethodTrial(Combine(methods=("kd", "factor_transfer"))))


def test_first_stages_that_leave_no_epoch_are_rejected() -> None:
    settings = ("fitnets.hint_fraction=0.9", "fsp.flow_fraction=0.9")
    with pytest.raises(
        MethodError, match=r"no epoch left .* the first stages of fitnets, fsp take 18 of 10 epochs; make their shares smaller"
    ):
        MethodTrial(Combine(methods=("fitnets", "fsp"), settings=settings), epochs=10).trainer()


@pytest.mark.parametrize("name", ["born_again", "label_refinery", "simkd"])
def test_generations_and_other_classifiers_are_rejected(name: str) -> None:
    with pytest.raises(MethodError, match=f"cannot combine '{name}': it changes more than the loss"):
        Combine(methods=("kd", name))


def test_a_part_that_differentiates_images_receives_images_with_gradients() -> None:
    curve = MethodTrial(Combine(methods=("kd", "gradient_attention")), epochs=1).trainer().fit()
    assert curve[0]["gradient_attention.gradient"] > 0


def test_a_part_that_does_not_suit_the_student_makes_the_combination_unsuitable() -> None:
    with pytest.raises(Unsuitable):
        Combine().knowledge(architecture((4, 8, 8)), architecture())


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"methods": ("kd", "kd")}, "no method twice"),
        ({"methods": ()}, "at least one method"),
        ({"methods": ("kdd",)}, "no method 'kdd'; did you mean 'kd'"),
        ({"methods": ("scratch",)}, "cannot combine 'scratch': it adds nothing to cross-entropy"),
        ({"methods": ("combine",)}, "cannot combine 'combine'"),
        ({"methods": ("ensemble",)}, "cannot combine 'ensemble': it learns from all teachers together"),
        ({"weights": (1.0,)}, "one entry for each of the 2 methods, got 1"),
        ({"weights": (1.0, -1.0)}, "weights must be >= 0, got -1.0"),
        ({"weights": (1.0, float("nan"))}, "weights must be >= 0, got nan"),
        ({"settings": ("temperature=2",)}, "must look like 'kd.hyperparameter=value'"),
        ({"settings": ("fitnets.temperature=2",)}, "with one of the methods, got 'fitnets.temperature=2'"),
        ({"settings": ("kd.temprature=2",)}, "kd has no hyper-parameter 'temprature'; did you mean 'temperature'"),
        ({"settings": ("kd.temperature=0",)}, "temperature must be > 0, got 0"),
    ],
)
def test_a_wrong_combination_is_rejected(hyperparameters: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Combine(**hyperparameters)
