"""The conformance suite for operators: what every operator must satisfy, checked on real images and shipped models.

    from stillhouse.testing import check_operator

    def test_my_operator_passes_every_check() -> None:
        check_operator(MyOperator(ratio=0.5))

The test of an operator adds what only that operator must satisfy: its result, compared with numbers that do not come from its
code.
"""

import copy
import dataclasses
import functools
import json
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from stillhouse import tasks
from stillhouse.compress.chain import Chain
from stillhouse.compress.operator import Calibration, Card, Context, Conversion, Operator
from stillhouse.data.views import Views
from stillhouse.distill.method import Method, sum_of_terms
from stillhouse.distill.trainer import Trainer
from stillhouse.models.registry import sketch_model
from stillhouse.testing.checks import check_configured, run_checks, train_resumed
from stillhouse.testing.method_trial import NUM_TRAINING, TRAINING, build_student, digits, trained_teacher
from stillhouse.testing.tolerance import tolerance_on


def check_operator(operator: Operator, *, model: str = "resnet8", device: str = "cpu") -> None:
    """Runs every check of `OPERATOR_CHECKS`; takes a few seconds.

    What is equal bit for bit on a CPU may differ by the tolerances of `stillhouse.testing.tolerance` on another device.

    Args:
        operator: an instance with the options to try.
        model: name of a shipped model that suits the operator.
        device: where the converted networks are trained and run, such as `cuda`. They are converted on the CPU, as in trials.

    Raises:
        AssertionError: the operator fails a check. The message lists every failed check, what it requires and what was found.
            Any other exception of the operator is raised as it is, with a note that names the check.
    """
    run_checks(OPERATOR_CHECKS, OperatorTrial(operator, model, device), operator.readable)


@dataclass(frozen=True)
class OperatorTrial:
    """One operator on one model, which was trained for two epochs.

    Attributes:
        operator: an instance with the options to try.
        model: name of a shipped model.
        device: where converted networks are trained and run.
    """

    operator: Operator
    model: str = "resnet8"
    device: str = "cpu"

    def outputs(self, model: nn.Module) -> Tensor:
        """What the model returns for some images on the trial's device, [B, C], in evaluation mode."""
        data = digits()
        model.to(self.device).eval()
        with torch.no_grad():
            outputs: Tensor = model(tasks.of(data).first_inputs(data, data.test, 64, self.device))
        return outputs

    def assert_same(self, value: Tensor, expected: Tensor, what: str) -> None:
        """Raises an AssertionError that names `what` unless the values are equal, up to the tolerance of the device."""
        tolerance_on(self.device).assert_repeated(value, expected, what)

    @property
    def chain(self) -> Chain:
        return Chain((self.operator.name,), (self.operator,))

    @property
    def context(self) -> Context:
        data = digits()
        return Context(
            num_classes=data.num_classes,
            input_shape=data.input_shape,
            seed=7,
            trained=True,
            calibration=Calibration(batches=_batches, loss=_loss),
        )

    def trained(self) -> nn.Module:
        """A new copy of the trained network, which can be trained on."""
        return copy.deepcopy(trained_teacher(self.model)).requires_grad_(True)

    def convert(self) -> Conversion:
        """The converted network; a new one in each call."""
        return self.chain.convert(self.trained(), self.context)

    def sketch(self) -> Conversion:
        """As a plan converts the network: without values."""
        data = digits()
        return self.chain.sketch(
            functools.partial(build_student, self.model),
            functools.partial(sketch_model, self.model, num_classes=data.num_classes, input_shape=data.input_shape),
            dataclasses.replace(self.context, trained=False, calibration=None),
        )

    def trainer(self, epochs: int = 2) -> Trainer:
        """A trainer of the converted network, without a teacher, before its first epoch."""
        data = digits()
        return Trainer(
            new_student=lambda: self.convert().model,
            method=Method(),
            data=data,
            views=Views(({"crop": {"padding": 1}},), 2, data.input_shape, NUM_TRAINING),
            training=TRAINING,
            epochs=epochs,
            operators=self.chain,
            device=self.device,
        )


def check_card(trial: OperatorTrial) -> None:
    """The card has a title, and says what the operator does and what becomes smaller."""
    card = type(trial.operator).card
    assert card is not Operator.card, "an operator must define its own `card`, it has the one of the base class"
    for name in ("title", "does", "effect"):
        assert getattr(card, name), f"card.{name} is empty; see {Card.__module__}.Card"


def check_options(trial: OperatorTrial) -> None:
    """Defaults and priors follow the rules; the constructor rejects other values and names them; all values are plain data."""
    check_configured(type(trial.operator))
    copied = pickle.loads(pickle.dumps(trial.operator))  # noqa: S301
    assert copied == trial.operator, f"a pickled copy of the operator differs: {copied!r}"


def check_neutral_options_change_nothing(trial: OperatorTrial) -> None:
    """With the options of `neutral`, the converted network computes what it did before; on a CPU, bit for bit."""
    kind = type(trial.operator)
    neutral = dataclasses.replace(trial, operator=kind(**kind.neutral))
    before, model = trial.outputs(trial.trained()), neutral.convert().model
    name = neutral.operator.readable
    trial.assert_same(trial.outputs(model), before, f"the output with {name}")
    neutral.chain.finalise(model)
    trial.assert_same(trial.outputs(model), before, f"the output after finalise of {name}")


def check_shapes_without_values_are_the_real_ones(trial: OperatorTrial) -> None:
    """`convert` and `finalise` on the meta device give the names, shapes and dtypes that they give on real weights."""
    if trial.operator.weights_decide_sizes:
        return
    planned, real = trial.sketch().model, trial.convert().model
    assert all(weight.is_meta for weight in planned.state_dict().values()), "the sketch must stay on the meta device"
    assert _shapes(planned) == _shapes(real), "the converted networks differ"
    trial.chain.finalise(planned)
    trial.chain.finalise(real)
    assert _shapes(planned) == _shapes(real), "the finalised networks differ"


def check_conversions_are_equal(trial: OperatorTrial) -> None:
    """Two conversions of the same weights are equal bit for bit; the history is plain data."""
    first, second = trial.convert(), trial.convert()
    assert json.loads(json.dumps(first.history)) == first.history, "the history is not what JSON returns of it"
    assert first.history == second.history, "the histories differ"
    _assert_same_weights(trial, first.model, second.model)


def check_a_stored_network_is_the_trained_one(trial: OperatorTrial) -> None:
    """A network that `replay` builds, with the tensors of the stored file, computes what the trained one did.

    On a CPU that holds bit for bit. The file has the length that a plan gives, unless weights decide sizes.
    """
    trainer, history = trial.trainer(epochs=1), trial.convert().history
    trainer.fit()
    trainer.finalise()
    packed = trial.chain.pack(trainer.student, trainer.student.state_dict(), history)
    content = save({name: value.detach().contiguous().clone() for name, value in packed.items()})
    assert len(content) == trial.chain.stored_bytes(trainer.student, history), "stored_bytes is not the length of the file"
    if not trial.operator.weights_decide_sizes:
        sketch = trial.sketch()
        trial.chain.finalise(sketch.model)
        planned = trial.chain.stored_bytes(sketch.model, sketch.history)
        assert planned == len(content), f"the plan says {planned} bytes, the file has {len(content)}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.safetensors"
        path.write_bytes(content)
        stored = load_file(path)
    fresh = build_student(trial.model)
    again = trial.chain.replay(fresh, history, dataclasses.replace(trial.context, calibration=None))
    trial.chain.finalise(again)
    again.load_state_dict(trial.chain.unpack(again, stored, history), strict=True)
    outputs = trial.outputs(again)
    trial.assert_same(outputs, trial.outputs(trainer.student), "the output of the loaded network")
    assert outputs.shape == (64, digits().num_classes)


def check_a_resumed_training_ends_with_the_same_weights(trial: OperatorTrial) -> None:
    """Saving and loading after every epoch changes nothing in the network, finalised or not; on a CPU, no bit."""
    with tempfile.TemporaryDirectory() as folder:
        straight = trial.trainer()
        straight.fit()
        resumed = train_resumed(trial.trainer, Path(folder) / "resumed")
    for _ in range(2):
        _assert_same_weights(trial, straight.student, resumed.student)
        straight.finalise()
        resumed.finalise()


Check = Callable[[OperatorTrial], None]
OPERATOR_CHECKS: dict[str, Check] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_card,
        check_options,
        check_neutral_options_change_nothing,
        check_shapes_without_values_are_the_real_ones,
        check_conversions_are_equal,
        check_a_stored_network_is_the_trained_one,
        check_a_resumed_training_ends_with_the_same_weights,
    )
}
"""What every operator must satisfy, by name; tests may be parametrised over it."""


def _batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    data = digits()
    images, targets = tasks.of(data).first_inputs(data, data.train, count), data.train.labels[:count]
    yield from zip(images.split(64), targets.split(64), strict=True)


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    task = tasks.of(digits())
    return sum_of_terms(task.losses(task.outputs(outputs), targets))


def _shapes(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}


def _assert_same_weights(trial: OperatorTrial, one: nn.Module, other: nn.Module) -> None:
    weights, others = one.state_dict(), other.state_dict()
    assert weights.keys() == others.keys(), f"these exist once only: {sorted(weights.keys() ^ others.keys())}"
    for name, value in weights.items():
        trial.assert_same(value, others[name], f"'{name}'")
