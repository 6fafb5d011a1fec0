"""What a teacher is before it is loaded: plain data that travels to every process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from stillhouse import tasks
from stillhouse.data.datasets import ImageData
from stillhouse.data.normalisation import Normalisation
from stillhouse.data.views import Views
from stillhouse.device import Float32Precision
from stillhouse.durable import bytes_hash, content_hash
from stillhouse.errors import UsageError
from stillhouse.knowledge.code_version import named_version
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.models.checkpoint_files import checkpoint_file
from stillhouse.models.given_content import given_content
from stillhouse.models.given_weights import load_start
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training
from stillhouse.teachers.own_normalisation import OwnNormalisation


@dataclass(frozen=True, kw_only=True)
class TeacherDefinition:
    """A teacher as the spec describes it.

    Attributes:
        weights: an absolute file path or `torchvision:<weights enum>`; None for a teacher that begins with random ones.
        rename, head: how given weights are read, as in the spec.
        training: the recipe of a teacher that is trained.
        num_classes: how many numbers it returns for each sample.
        task: what it is trained to do; None for the default task.
        normalisation: of given weights, where it is not that of the data set.
        normalisation_is_stated: whether the spec or the weights state one.
        untrained: whether it keeps its first random weights: the control `random_teacher`. It has no given ones then.
    """

    name: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    rename: Mapping[str, str | None] = field(default_factory=dict)
    head: str | None = None
    training: Training = field(default_factory=Training)
    epochs: int = 30
    seed: int = 0
    num_classes: int
    input_shape: tuple[int, ...]
    task: str | None = None
    normalisation: OwnNormalisation | None = None
    normalisation_is_stated: bool = False
    untrained: bool = False

    def build(self) -> nn.Module:
        """The untrained model; the caller seeds."""
        return build_model(self.model, num_classes=self.num_classes, input_shape=self.input_shape, **self.options)

    @property
    def is_trained(self) -> bool:
        """Whether the sweep trains it, from random weights or from given ones."""
        return not self.untrained and (self.weights is None or self.head is not None)

    def load_given(self, model: nn.Module) -> None:
        """Copies the given weights into the model; those of a new head stay as they are.

        Raises:
            UsageError: they cannot be read or do not fit the model.
        """
        assert self.weights is not None
        try:
            load_start(
                model,
                {"weights": self.weights, "rename": self.rename, "head": self.head},
                named=(self.model, self.options, self.num_classes, self.input_shape),
            )
        except UsageError as error:
            raise UsageError(f"teachers.{self.name}.weights cannot be used: {error}") from error

    def adapt(self, model: nn.Module) -> nn.Module:
        """The loaded model, which from now on is called with the data's normalised pixels."""
        if self.normalisation is not None:
            self.normalisation.attach(model)
        return model

    @property
    def normalization(self) -> str:
        """Its own normalisation as text; empty where it is that of the data set."""
        return "" if self.normalisation is None else str(self.normalisation.own)

    def given(self) -> str:
        """The `given_content` from which its training begins; empty where all weights are given or random."""
        if self.weights is not None or self.untrained:
            return ""
        return given_content(self.model, self.options, self.num_classes, self.input_shape)

    def architecture(self) -> dict[str, Any]:
        """Plain data that is equal for equal networks; the text of a user-defined model or task counts, within its package."""
        code = named_version(self.model)
        task = tasks.name_of(self.task)
        return {
            "model": self.model,
            "options": dict(self.options),
            "num_classes": self.num_classes,
            "input_shape": list(self.input_shape),
            **({} if code is None else {"code": code}),
            **({} if task is None else {"task": task, "task_code": tasks.own_version(task)}),
        }

    def key(self, data: ImageData, views: Views) -> str:
        """The address of the loaded teacher: equal for equal model, recipe, data and view policy, whatever its name."""
        identity: dict[str, Any] = {**self.architecture(), "data": data.fingerprint}
        if self.weights is not None:
            file, part = checkpoint_file(self.weights)
            # The key in the file is part of the key; of a whole file, the first release had its content alone.
            identity["weights"] = bytes_hash(file.read_bytes()) if file.is_file() else self.weights
            identity |= {"weights_key": part} if part and file.is_file() else {}
            if self.normalisation is not None:
                identity["normalization"] = self.normalisation.own.to_json()
            identity |= {"rename": dict(self.rename)} if self.rename else {}
            if self.head is not None:
                identity |= {"head": self.head, **self._training_identity(views)}
        elif self.untrained:
            identity |= {"untrained": self.seed}
        else:
            identity |= self._training_identity(views)
        return content_hash(identity)

    def _training_identity(self, views: Views) -> dict[str, Any]:
        return {
            "training": self.training.identity(),
            "epochs": self.epochs,
            "seed": self.seed,
            "views": views.identity(),
        }


def view_identity(base: Mapping[str, Any], kind: Knowledge, view: int) -> dict[str, Any]:
    """Everything that determines the content of a sealed view."""
    return {**base, "knowledge": kind.identity(), "view": view}


def base_identity(
    *,
    weights_hash: str,
    definition: TeacherDefinition,
    data: ImageData,
    views: Views,
    dtype: str,
    precision: Float32Precision = "ieee",
) -> dict[str, Any]:
    """Teacher, data, normalisation, view policy, number format and precision: the fixed part of `view_identity`."""
    own = definition.normalisation.own if definition.normalisation else Normalisation.of(data)
    return {
        "teacher": {"weights": weights_hash, **definition.architecture()},
        "normalisation": own.to_json(),
        "data": data.fingerprint,
        "views": views.identity(),
        "dtype": dtype,
        # Left out for the usual one, so that views of earlier versions keep their keys.
        **({} if precision == "ieee" else {"precision": precision}),
    }
