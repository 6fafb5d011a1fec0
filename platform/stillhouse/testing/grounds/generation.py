"""Methods of generation are checked on handwritten digits of 8 x 8 pixels in 10 classes, part of scikit-learn."""

import functools

from stillhouse import tasks
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.spec.training import Training
from stillhouse.teachers import judges
from stillhouse.testing.grounds._ground import Ground

NUM_TRAINING, NUM_VALIDATION = 256, 128


@functools.cache
def data() -> ImageData:
    """The images of all checks; their judge is not trained, since no check depends on how good a model is."""
    found = load_dataset(
        "digits",
        validation=NUM_VALIDATION,
        options={"limit": NUM_TRAINING + NUM_VALIDATION},
        task="generation",
        targets=tasks.find("generation").targets,
    )
    judges.prepare_untrained(found)
    return found


GROUND = Ground(
    load=data,
    training=Training(batch_size=64, optimizer="adam", learning_rate=2e-4, adam_beta1=0.5, weight_decay=0.0),
    teacher="dcgan",
    students=("dcgan",),
    options={"dcgan": {"width": 0.125}},
    policy=("flip",),
    policies=((), ({"crop": {"padding": 1}},)),
)
