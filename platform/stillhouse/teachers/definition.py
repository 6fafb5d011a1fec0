"""What a teacher is before it is loaded: plain data that travels to every process."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import cloudpickle
from torch import nn

from stillhouse import tasks
from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.durable import bytes_hash, content_hash
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.knowledge.code import named_version
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.top_k import TopK
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training


@dataclass(frozen=True, kw_only=True)
class TeacherDefinition:
    """A teacher as the spec describes it.

    Attributes:
        weights: an absolute file path or `torchvision:<weights enum>`; None trains the teacher.
        training: the recipe when it is trained.
        num_classes: how many numbers it returns for each sample.
        task: what it is trained to do; None for the default task.
    """

    name: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    training: Training = field(default_factory=Training)
    epochs: int = 30
    seed: int = 0
    num_classes: int
    input_shape: tuple[int, int, int]
    task: str | None = None

    def build(self) -> nn.Module:
        """The untrained model; the caller seeds."""
        return build_model(self.model, num_classes=self.num_classes, input_shape=self.input_shape, **self.options)

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
        """The address of the trained teacher: equal for equal model, recipe, data and view policy, whatever its name."""
        identity: dict[str, Any] = {**self.architecture(), "data": data.fingerprint}
        if self.weights is not None:
            path = Path(self.weights)
            identity["weights"] = bytes_hash(path.read_bytes()) if path.is_file() else self.weights
        else:
            identity |= {
                "training": self.training.identity(),
                "epochs": self.epochs,
                "seed": self.seed,
                "views": views.identity(),
            }
        return content_hash(identity)


@dataclass(frozen=True)
class FillPlan:
    """What each view is filled with, so that one forward pass gives all that any trial reads of it.

    Attributes:
        packed: the kinds of knowledge, pickled: a process may hold the plan before it can import what they name.
        views: of each kind, in the same order, the views in which some trial reads it.
    """

    packed: bytes = b""
    views: tuple[frozenset[int], ...] = ()

    @classmethod
    def make(cls, views_of: Iterable[tuple[Knowledge, Iterable[int]]]) -> "FillPlan":
        pairs = list(views_of)
        packed = cloudpickle.dumps([kind for kind, _ in pairs])
        return cls(packed, tuple(frozenset(views) for _, views in pairs))

    def kinds(self, view: int) -> list[Knowledge]:
        """What view number `view` is filled with."""
        if not any(view in views for views in self.views):
            return []
        # From the driver's own memory by way of Ray's, never from a file.
        kinds: list[Knowledge] = cloudpickle.loads(self.packed)
        return [kind for kind, views in zip(kinds, self.views, strict=True) if view in views]


@dataclass(frozen=True, kw_only=True)
class TeacherTicket:
    """What a trial must know of a loaded teacher to find its knowledge, or to run it itself.

    Attributes:
        weights_path: safetensors file of the loaded weights.
        base: the part of every sealed view's identity that does not depend on the kind of knowledge or the view.
        ways: `cached`, `served` or `inline`, by the text of each kind of knowledge.
        plan: what the views are filled with for all trials together.
        calling_way: `served` or `inline`, for methods that call the teacher on inputs of their own making.
        actor: the name of the shared actor.
        replicas: the names of others that do the same work.
        sweep: for which the teacher is asked.
        top_k: how logits are kept; None keeps them whole.
        home: where the paths above lead; None where every process sees them.
    """

    definition: TeacherDefinition
    weights_path: str
    weights_hash: str
    base: Mapping[str, Any]
    dtype: str
    store: str
    actor: str
    namespace: str
    ways: Mapping[str, str] = field(default_factory=dict)
    plan: FillPlan = FillPlan()
    calling_way: str = "inline"
    top_k: TopK | None = None
    home: HomeAddress | None = None
    replicas: tuple[str, ...] = ()
    sweep: str = ""

    def form(self, kind: Knowledge) -> Knowledge:
        """In which form `kind` is asked of the teacher."""
        return kind if self.top_k is None else self.top_k.of(kind, self.definition.num_classes)


def view_identity(base: Mapping[str, Any], kind: Knowledge, view: int) -> dict[str, Any]:
    """All that decides the content of a sealed view."""
    return {**base, "knowledge": kind.identity(), "view": view}


def base_identity(
    *, weights_hash: str, definition: TeacherDefinition, data: ImageData, views: Views, dtype: str
) -> dict[str, Any]:
    """Teacher, data, normalisation, view policy and number format: the fixed part of `view_identity`."""
    return {
        "teacher": {"weights": weights_hash, **definition.architecture()},
        "normalisation": {"mean": list(data.mean), "std": list(data.std)},
        "data": data.fingerprint,
        "views": views.identity(),
        "dtype": dtype,
    }
