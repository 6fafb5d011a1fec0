"""Methods of classification are checked on handwritten digits of 8 x 8 pixels in 10 classes, part of scikit-learn."""

import functools

from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.spec.training import Training
from stillhouse.testing.grounds._ground import Ground

NUM_TRAINING, NUM_VALIDATION = 256, 64


@functools.cache
def digits() -> ImageData:
    """The images of all checks."""
    return load_dataset("digits", validation=NUM_VALIDATION, options={"limit": NUM_TRAINING + NUM_VALIDATION})


GROUND = Ground(
    load=digits,
    training=Training(batch_size=64, learning_rate=0.01),
    teacher="resnet8",
    students=("lenet", "resnet8"),
    policy=({"crop": {"padding": 1}},),
    policies=((), ("mixup",)),
    without_maps="mlp",
)
