"""A few digits, and a trainer with everything filled in that a test does not care for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from torch import nn

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.method import Method
from stillhouse.distill.trainer import Trainer
from stillhouse.models.registry import build_model
from stillhouse.spec.training import Training

MakeTrainer = Callable[..., Trainer]


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """160 images to train on, 40 to validate."""
    return load_dataset("digits", options={"limit": 200}, validation=40)


@pytest.fixture(scope="session")
def make_trainer(digits: ImageData) -> MakeTrainer:
    def make(
        method: Method | None = None,
        *,
        model: str | Callable[[], nn.Module] = "mlp",
        options: Mapping[str, Any] | None = None,
        policy: Sequence[Any] = (),
        views: int = 2,
        epochs: int = 2,
        data: ImageData = digits,
        recipe: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Trainer:
        def build() -> nn.Module:
            if not isinstance(model, str):
                return model()
            return build_model(model, num_classes=data.num_classes, input_shape=data.input_shape, **(options or {}))

        return Trainer(
            new_student=build,
            method=Method() if method is None else method,
            data=data,
            views=Views(tuple(policy), views, data.input_shape, len(data.train)),
            training=Training.model_validate({"batch_size": 64, "learning_rate": 0.05, **(recipe or {})}),
            epochs=epochs,
            **fields,
        )

    return make
