"""The conformance suite for tasks: what the platform relies on in every task, checked on its own data.

    from stillhouse.testing import check_task

    def test_my_task_passes_every_check() -> None:
        check_task("ages:AgeTask", "ages:load")

The test of a task adds what only that task must satisfy: its loss and its metric, compared with numbers worked out by hand.
"""

import functools
import math
import pickle
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse import tasks
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.method import Method, sum_of_terms
from stillhouse.distill.trainer import Trainer
from stillhouse.models.architecture import describe
from stillhouse.models.blueprint import blueprint, build_problems
from stillhouse.models.registry import all_model_names, build_model, sketch_model, with_data_options
from stillhouse.models.size import measure_size
from stillhouse.spec.training import Training
from stillhouse.tasks import Evaluator, Task
from stillhouse.teachers import judges
from stillhouse.teachers.library import TeacherLibrary
from stillhouse.testing.checks import run_checks, train_resumed
from stillhouse.testing.tolerance import tolerance_on

_TRAINING = Training(batch_size=64, learning_rate=0.01)
_ROWS = 48
_STEPS, _RATE = 300, 0.1


@dataclass(frozen=True)
class TaskTrial:
    """A task with data of its own.

    Attributes:
        model: name of a shipped model of the task.
        device: of the models, their outputs and the targets.
        options: of the model.
    """

    task: Task
    data: ImageData
    model: str = "lenet"
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)

    def new_model(self) -> nn.Module:
        return build_model(self.model, **self.task.model_arguments(self.data), **self.options_of(self.model))

    def options_of(self, model: str) -> dict[str, Any]:
        """The options of a model of this data set."""
        return with_data_options(model, self.options if model == self.model else {}, self.data.model_options)

    def sketch(self, model: str) -> nn.Module | None:
        """A shipped model without storage; None if it does not suit the task."""
        arguments, options = self.task.model_arguments(self.data), self.options_of(model)
        if build_problems(model, options, **arguments):
            return None
        known = blueprint(model, options, **arguments).architecture
        return sketch_model(model, **arguments, **options) if self.task.model_problem(known) is None else None

    def views(self, policy: Sequence[Any] = ({"crop": {"padding": 1}},)) -> Views:
        """Two views of the training split; of samples that are no images, one without changes."""
        images = len(self.data.input_shape) == 3
        return Views(tuple(policy) if images else (), 2, self.data.input_shape, len(self.data.train), drawn=self.task.draws)

    def trainer(self, epochs: int = 3) -> Trainer:
        """Supervised training of the model, before its first epoch."""
        return Trainer(
            new_student=self.new_model,
            method=Method(),
            data=self.data,
            views=self.views(),
            training=_TRAINING,
            epochs=epochs,
            seed=1,
            device=self.device,
        )

    @functools.cached_property
    def targets(self) -> Tensor:
        """Some of the training split's targets."""
        return self.data.train.labels[:_ROWS].to(self.device)

    def raw(self, seed: int = 0) -> Tensor:
        """Numbers [B, ...] as a model could return them for `targets`."""
        generator = torch.Generator().manual_seed(seed)
        returned = describe(self.new_model(), name=self.model, input_shape=self.data.input_shape).returns
        return torch.randn(len(self.targets), *returned, generator=generator).to(self.device)

    def loss(self, raw: Tensor, targets: Tensor, reduction: tasks.Reduction = "mean") -> Tensor:
        """The supervised loss of what a model returned."""
        return sum_of_terms(self.task.losses(self.task.outputs(raw), targets, reduction))

    def evaluated(self, raw: Tensor, *parts: slice) -> list[Evaluator]:
        """One evaluator for each part of the targets."""
        evaluators = []
        for part in parts:
            evaluators.append(self.task.evaluator_for(self.data))
            evaluators[-1].update(self.judged(raw, part), self.targets[part])
        return evaluators

    def judged(self, raw: Tensor, part: slice) -> Mapping[str, Tensor]:
        """What an evaluator reads of a part of what a model returned for `targets`."""
        return self.task.judged(self.data, self.task.outputs(raw[part]), part.start or 0)

    def step(self, raw: Tensor) -> "TaskStep":
        """A training step in which a model returned this for `targets`; helpers are in evaluation mode."""
        places = torch.arange(len(raw), device=self.device)
        images, views = self.data.train.images.to(self.device), self.views(())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            helpers = self.task.helpers(self.data.num_classes, self.data.input_shape)
        return TaskStep(
            images=self.task.inputs(self.data, views, images, places, 0),
            labels=self.targets,
            targets=self.task.training_targets(self.data, views, images, places, 0, self.targets),
            student=self.new_model(),
            outputs=self.task.outputs(raw),
            modules={name: helper.to(self.device).eval() for name, helper in helpers.items()},
        )


@dataclass(frozen=True, kw_only=True)
class TaskStep:
    """What a task sees of a training step; see `tasks.SupervisedStep`."""

    images: Tensor
    labels: Tensor
    targets: Tensor
    student: nn.Module
    outputs: Mapping[str, Tensor]
    modules: Mapping[str, nn.Module]


def check_task(
    task: str,
    dataset: str,
    *,
    model: str = "lenet",
    root: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> None:
    """Runs every check of `TASK_CHECKS`; takes a few seconds.

    Args:
        task: as a spec names it.
        dataset: a data set of the task, of at least 100 images, as a spec names it.
        model: name of a shipped model that takes the images.
        root: the folder of the data set, if it has one.
        options: of the data set.
        device: of the models, their outputs and the targets, such as `cuda`.

    Raises:
        AssertionError: the task fails a check. The message lists every failed check, what it requires and what was found.
            Any other exception of the task is raised as it is, with a note that names the check.
    """
    found = tasks.find(task)
    data = load_dataset(dataset, root=root, options=options, task=tasks.name_of(task), targets=found.targets)
    with tempfile.TemporaryDirectory() as folder:
        judges.prepare(data, TeacherLibrary(Path(folder)))
    run_checks(TASK_CHECKS, TaskTrial(found, data, model, device), f"task {found.name}")


def check_is_found_by_its_name(trial: TaskTrial) -> None:
    """Every process finds the task again by its name; a pickled copy is of the same class."""
    assert type(tasks.find(trial.task.name)) is type(trial.task), f"'{trial.task.name}' names another task"
    assert type(pickle.loads(pickle.dumps(trial.task))) is type(trial.task)  # noqa: S301


def check_metric(trial: TaskTrial) -> None:
    """The metric's name can be part of a column's and is no size's; its label and its values can be shown."""
    metric = trial.task.metric
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name), (
        f"metric.name must be lower-case letters, digits and _: {metric.name!r}"
    )
    assert metric.label, "metric.label must say what tables call it; it is empty"
    assert metric.format(0.5), "metric.format must give a text"
    size = measure_size(trial.new_model(), trial.data.input_shape)
    assert metric.column("test") not in vars(size), f"{metric.column('test')} is the name of a size"


def check_targets(trial: TaskTrial) -> None:
    """Targets stay as they are when they are read again; every sample has a group; outputs are as many as the data set's."""
    rule, labels = trial.task.targets, trial.data.train.labels.numpy()
    again = rule.convert(labels, "targets")
    assert again.dtype == labels.dtype, f"targets.convert must keep its own type {labels.dtype}, it gives {again.dtype}"
    assert np.array_equal(again, labels), "targets.convert must keep what it has converted"
    strata = rule.strata(labels)
    assert strata.shape == (len(labels),), f"targets.strata must be [N], got {list(strata.shape)} for {len(labels)} samples"
    assert strata.dtype.kind in "iu", f"targets.strata must be whole numbers, got {strata.dtype}"
    number, _ = rule.outputs(labels, trial.data.class_names, trial.data.num_classes)
    assert number == trial.data.num_classes, f"targets.outputs gives {number} numbers, the data set {trial.data.num_classes}"


def check_models(trial: TaskTrial) -> None:
    """Shipped models are built with the task's arguments, without storage too, and return outputs of the promised shapes."""
    arguments = trial.task.model_arguments(trial.data)
    fitting = {name: sketched for name in all_model_names() if (sketched := trial.sketch(name)) is not None}
    assert trial.model in fitting, f"{trial.model} cannot be built with {arguments}"
    promised = trial.task.output_shapes(trial.data.num_classes, trial.data.input_shape)
    for name, sketched in fitting.items():
        with torch.no_grad():
            raw = sketched.eval()(trial.task.example_input(trial.data, 2, "meta"))
        shapes = {output: tuple(value.shape) for output, value in trial.task.outputs(raw).items()}
        for output, shape in promised.items():
            assert shapes.get(output) == (2, *shape), (
                f"output '{output}' of {name} must be {(2, *shape)}, got {shapes.get(output)}"
            )


def check_example_input(trial: TaskTrial) -> None:
    """The example input has the shape and the type of what models are trained on."""
    views = trial.views(())
    images, places = trial.data.train.images.to(trial.device), torch.arange(3, device=trial.device)
    real = trial.task.inputs(trial.data, views, images, places, 0)
    example = trial.task.example_input(trial.data, 3, trial.device)
    # Where batches differ in length, the example is a longest one.
    longest = max(real.shape[1], example.shape[1]) if trial.task.any_length else real.shape[1]
    expected = [len(real), longest, *real.shape[2:]]
    assert list(example.shape) == expected, f"example_input must be {expected}, got {list(example.shape)}"
    assert example.dtype == real.dtype, f"example_input must be {real.dtype}, got {example.dtype}"
    assert example.device == real.device, f"example_input must be on {real.device}, got {example.device}"


def check_inputs_are_a_function_of_the_sample_and_the_view(trial: TaskTrial) -> None:
    """Student and teacher, on any device and in batches of any order, read the same bits of a sample."""
    views = trial.views()
    images = trial.data.train.images
    read = functools.partial(trial.task.inputs, trial.data, views, images.to(trial.device))
    places = torch.arange(8, device=trial.device)
    order = places.flip(0)
    view = views.count - 1
    in_order = read(places, view)
    assert torch.equal(in_order[order], read(order, view)), "inputs depend on the order of the batch"
    on_cpu = trial.task.inputs(trial.data, views, images, torch.arange(8), view)
    assert torch.equal(in_order.cpu(), on_cpu), f"inputs on {trial.device} differ from those on the CPU"


def check_losses_are_finite_and_have_gradients(trial: TaskTrial) -> None:
    """The loss is made of named scalars, finite, and depends on what the model returned."""
    raw = trial.raw().requires_grad_()
    step = trial.step(raw)
    terms = trial.task.step_terms(step)
    assert terms, "losses must name at least one term"
    for name, term in terms.items():
        assert term.ndim == 0, f"loss '{name}' must be a scalar, got shape {list(term.shape)}"
        assert bool(term.isfinite()), f"loss '{name}' is {term.item()}"
    (gradient,) = torch.autograd.grad(sum_of_terms(terms), raw)
    assert bool(gradient.isfinite().all()), "the loss has a gradient that is not finite"
    assert bool(gradient.any()), "the loss does not depend on what the model returned"
    losses = trial.task.helper_terms(step)
    assert losses.keys() <= step.modules.keys(), f"helper_terms names {', '.join(losses)}, helpers {', '.join(step.modules)}"
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, list(step.modules[name].parameters()))
        assert bool(loss.isfinite()), f"the loss of helper '{name}' is {loss.item()}"
        assert any(bool(each.any()) for each in gradients), f"the loss of helper '{name}' has no gradient for its weights"


def check_the_loss_is_a_mean_over_samples(trial: TaskTrial) -> None:
    """The loss of a batch is the mean of those of its parts by their samples, and the sum is that of the samples' own.

    Unless the task is not `separable`.
    """
    if not trial.task.separable:
        return
    raw, targets = trial.raw().double(), _double(trial.targets)
    whole, cut = trial.loss(raw, targets), 7
    parts = trial.loss(raw[:cut], targets[:cut]) * cut + trial.loss(raw[cut:], targets[cut:]) * (len(raw) - cut)
    _assert_close(parts / len(raw), whole, "the mean over two parts")
    alone = sum(float(trial.loss(raw[row : row + 1], targets[row : row + 1], "sum")) for row in range(len(raw)))
    _assert_close(trial.loss(raw, targets, "sum"), alone, "the sum over the samples")
    _assert_close(whole * len(raw), alone, "the mean times the number of samples")


def check_parts_are_evaluated_as_the_whole(trial: TaskTrial) -> None:
    """Batches of any size, and evaluators that are merged in any order, give the value of the whole split."""
    raw = trial.raw()
    (whole,) = trial.evaluated(raw, slice(None))
    batches = trial.task.evaluator_for(trial.data)
    for start in range(0, len(raw), 7):
        part = slice(start, start + 7)
        batches.update(trial.judged(raw, part), trial.targets[part])
    _assert_close(batches.result(), whole.result(), "the value over batches")
    cuts = (slice(0, 5), slice(5, 30), slice(30, None))
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        merged, states = trial.task.evaluator_for(trial.data), [each.state() for each in trial.evaluated(raw, *cuts)]
        for place in order:
            merged.merge(states[place])
        _assert_close(merged.result(), whole.result(), f"the value of parts merged in the order {order}")
    for name, value in whole.state().items():
        assert value.ndim >= 1, f"state '{name}' must have at least one dimension, so that processes can exchange it"


def check_a_lower_loss_is_a_better_metric(trial: TaskTrial) -> None:
    """Outputs that minimise the loss are better by the metric, in its direction, than random ones.

    Unless the loss depends on helpers, which outputs can mislead.
    """
    if not trial.task.separable:
        return
    raw = trial.raw().requires_grad_()
    (before,) = trial.evaluated(raw.detach(), slice(None))
    optimiser = torch.optim.Adam([raw], lr=_RATE)
    for _ in range(_STEPS):
        optimiser.zero_grad()
        trial.loss(raw, trial.targets).backward()
        optimiser.step()
    (after,) = trial.evaluated(raw.detach(), slice(None))
    metric = trial.task.metric
    assert math.isfinite(after.result()), f"the metric is {after.result()}"
    assert metric.better(after.result(), before.result()), (
        f"{metric.name} goes from {before.result():.4g} to {after.result():.4g} as the loss falls; is metric.direction right?"
    )


def check_mixed_targets(trial: TaskTrial) -> None:
    """Where targets can be mixed, a share of 1 has the loss of the own target and a share of 0 that of the other's."""
    if not trial.task.mixes:
        return
    own, others, raw = trial.targets, trial.targets.flip(0), trial.raw()
    for share, expected in ((1.0, own), (0.0, others)):
        mixed = trial.task.mix(own, others, torch.full((len(own),), share), trial.data.num_classes)
        _assert_close(trial.loss(raw, mixed), trial.loss(raw, expected), f"the loss of a share of {share:g}")


def check_a_resumed_training_ends_with_the_same_weights(trial: TaskTrial) -> None:
    """A training that is saved and loaded after every epoch ends as one that was not; on a CPU, bit for bit."""
    straight = trial.trainer()
    straight.fit()
    with tempfile.TemporaryDirectory() as folder:
        resumed = train_resumed(trial.trainer, Path(folder) / "checkpoint")
    tolerance, other = tolerance_on(trial.device), resumed.student.state_dict()
    for name, weight in straight.student.state_dict().items():
        tolerance.assert_repeated(weight, other[name], f"{name} after resuming")
    if tolerance.repeated == 0:
        # Elsewhere a difference within the tolerance may decide on a sample, so that the metric's value differs.
        column = trial.task.metric.column("validation")
        assert [entry[column] for entry in straight.curve] == [entry[column] for entry in resumed.curve]


Check = Callable[[TaskTrial], None]
TASK_CHECKS: dict[str, Check] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_is_found_by_its_name,
        check_metric,
        check_targets,
        check_models,
        check_example_input,
        check_inputs_are_a_function_of_the_sample_and_the_view,
        check_losses_are_finite_and_have_gradients,
        check_the_loss_is_a_mean_over_samples,
        check_parts_are_evaluated_as_the_whole,
        check_a_lower_loss_is_a_better_metric,
        check_mixed_targets,
        check_a_resumed_training_ends_with_the_same_weights,
    )
}
"""What every task must satisfy, by name; tests may be parametrised over it."""


def _double(targets: Tensor) -> Tensor:
    return targets.double() if targets.is_floating_point() else targets


def _assert_close(value: Tensor | float, expected: Tensor | float, what: str) -> None:
    value, expected = float(value), float(expected)
    assert math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9), f"{what} must be {expected:.9g}, got {value:.9g}"
