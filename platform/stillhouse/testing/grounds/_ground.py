"""The form of a ground: data, models and a recipe on which methods of one task are checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from stillhouse.data.images import ImageData
from stillhouse.models.registry import build_model, with_data_options
from stillhouse.spec.training import Training

Policy = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Attributes:
    load: the data set; called often, so that it should remember its result. Its training split is a multiple of the batch
        size: every forward pass then has the same shape, and the same result bit for bit.
    training: of every check.
    teacher: name of a shipped model, trained for two epochs.
    students: names of shipped models; the first that suits a method is taken.
    options: those of models, by their name.
    policy: of the views.
    policies: others with which losses and gradients must be finite.
    without_maps: name of a shipped model without feature maps; None if the task has none.
    """

    load: Callable[[], ImageData]
    training: Training
    teacher: str
    students: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    policy: Policy
    policies: tuple[Policy, ...]
    without_maps: str | None = None

    def __hash__(self) -> int:
        """By identity: there is one ground of each task."""
        return id(self)

    def build(self, model: str) -> nn.Module:
        """A new model for the data set."""
        data = self.load()
        options = with_data_options(model, self.options.get(model, {}), data.model_options)
        return build_model(model, num_classes=data.num_classes, input_shape=data.input_shape, **options)
