"""Methods of object detection are checked on generated images of rectangles in two colours, of 32 x 48 pixels."""

import functools

import numpy as np

from stillhouse.data.boxes import BOXES, padded
from stillhouse.data.images import Arrays, ImageData, channel_statistics, split_of
from stillhouse.durable import content_hash
from stillhouse.spec.training import Training
from stillhouse.testing.grounds._ground import Ground

HEIGHT, WIDTH = 32, 48
NUM_TRAINING, NUM_VALIDATION = 16, 8
_COLOURS = ((220, 60, 60), (60, 60, 220))


def rectangles(count: int, seed: int) -> Arrays:
    """Images uint8 [count, 3, 32, 48] with one or two rectangles each, and their boxes [count, M, 5] by colour."""
    draw = np.random.default_rng(seed)
    images = draw.integers(90, 130, (count, 3, HEIGHT, WIDTH)).astype(np.uint8)
    boxes = []
    for image in images:
        own = []
        for place in range(int(draw.integers(1, 3))):
            height, width = (int(each) for each in draw.integers(9, 18, 2))
            top = int(draw.integers(0, HEIGHT - height))
            left = int(draw.integers(0, WIDTH // 2 - width + 1)) + place * WIDTH // 2
            label = int(draw.integers(2))
            image[:, top : top + height, left : left + width] = np.array(_COLOURS[label], np.uint8)[:, None, None]
            own.append((left, top, left + width, top + height, label))
        boxes.append(np.array(own, np.float32))
    return images, padded(boxes)


@functools.cache
def data() -> ImageData:
    """The images of all checks."""
    train, validation, test = (
        rectangles(count, seed) for seed, count in enumerate((NUM_TRAINING, NUM_VALIDATION, NUM_VALIDATION))
    )
    mean, std = channel_statistics(train[0])
    num_classes, names = BOXES.outputs(train[1], ("red", "blue"))
    return ImageData(
        name="rectangles",
        num_classes=num_classes,
        input_shape=(3, HEIGHT, WIDTH),
        class_names=names,
        fingerprint=content_hash({"rectangles": [HEIGHT, WIDTH, NUM_TRAINING, NUM_VALIDATION]}),
        mean=mean,
        std=std,
        train=split_of(train),
        validation=split_of(validation),
        read_test=lambda: test,
        task="detection",
    )


GROUND = Ground(
    load=data,
    training=Training(batch_size=8, learning_rate=0.01),
    teacher="fasterrcnn",
    students=("fasterrcnn",),
    options={"fasterrcnn": {"backbone": "resnet8", "width": 0.25, "neck_channels": 8, "hidden_units": 16, "proposals": 12}},
    policy=("flip", {"crop": {"padding": 2}}),
    policies=((), ("random_resized_crop",)),
)
