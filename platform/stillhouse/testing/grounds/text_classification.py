"""Methods of text classification are checked on texts of 4 to 11 words, one of which decides the class."""

import functools
import tempfile
from pathlib import Path

from stillhouse import tasks
from stillhouse.data.datasets import ImageData, dataset_facts, load_dataset
from stillhouse.spec.training import Training
from stillhouse.testing.grounds._ground import Ground

NUM_TRAINING, NUM_VALIDATION = 256, 64

_DATASET = "text_table"
_WORDS = ["river", "stone", "cloud", "apple", "train", "music", "paper", "light", "window", "garden"]


@functools.cache
def texts() -> ImageData:
    """The texts of all checks, of two classes."""
    rows = ["text,label"]
    for number in range(NUM_TRAINING + NUM_VALIDATION):
        words = [_WORDS[(number * place + place) % len(_WORDS)] for place in range(3 + number % 8)]
        words.insert(number % 3, ("awful", "lovely")[number % 2])
        rows.append(f"{' '.join(words)} {number},{('bad', 'good')[number % 2]}")
    task = dataset_facts(_DATASET).task
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.csv").write_text("\n".join(rows), encoding="utf-8")
        (Path(folder) / "test.csv").write_text("\n".join(rows[:NUM_VALIDATION]), encoding="utf-8")
        data = load_dataset(
            _DATASET,
            root=folder,
            validation=NUM_VALIDATION,
            options={"vocabulary": 400},
            task=task,
            targets=tasks.find(task).targets,
        )
        _ = data.test  # as long as the files are there
    return data


GROUND = Ground(
    load=texts,
    training=Training(batch_size=64, learning_rate=0.01),
    teacher="text_transformer",
    students=("text_cnn", "text_transformer"),
    policy=(),
    policies=((),),
    without_maps="text_cnn",
)
