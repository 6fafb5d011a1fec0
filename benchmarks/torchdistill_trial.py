"""Trials of torchdistill for `bench_sweep.py`: run it with a Python that can import torchdistill and this project's packages.

Reads one JSON document (data, models, epochs) and a number of trials from the command line, runs the trials one after the
other in this process with torchdistill's `DistillationBox` and `KDLoss`, and prints their seconds.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from torchdistill.core.distillation import get_distillation_box
from torchvision.transforms import v2

from stillhouse.models.registry import build_model


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Images in memory, augmented one by one with torchvision's transforms, as torchdistill's recipes do."""

    def __init__(self, archive: Any, augment: bool) -> None:
        self._images = torch.from_numpy(archive["images"])
        self._labels = archive["labels"].tolist()
        size = self._images.shape[-1]
        steps = [v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip()] if augment else []
        self._transform = v2.Compose(
            [*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(archive["mean"].tolist(), archive["std"].tolist())]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


def model(options: dict[str, Any], shape: tuple[int, int, int], classes: int) -> torch.nn.Module:
    options = dict(options)
    return build_model(options.pop("model"), num_classes=classes, input_shape=shape, **options)


def train(job: dict[str, Any], archive: Any, data: Images) -> None:
    shape, classes = tuple(archive["images"].shape[1:]), int(archive["classes"])
    teacher = model(job["teacher"], shape, classes)
    teacher.load_state_dict(load_file(job["weights"]))
    student = model(job["student"], shape, classes)
    loader = {
        "dataset_id": "train",
        "sampler": {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {}},
        "kwargs": {"batch_size": job["batch_size"], "num_workers": 0, "drop_last": False},
    }
    loss = {"kwargs": {"student_module_path": ".", "student_module_io": "output"}}
    loss["kwargs"] |= {"teacher_module_path": ".", "teacher_module_io": "output", "temperature": 4.0, "alpha": 0.1}
    config = {
        "num_epochs": job["epochs"],
        "train_data_loader": loader,
        "val_data_loader": {"dataset_id": "train", "sampler": loader["sampler"], "kwargs": {"batch_size": 512}},
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", **loss}, "weight": 1.0}}},
        },
    }
    box = get_distillation_box(teacher, student, {"train": data}, config, torch.device("cpu"), None, False, 1)
    for epoch in range(box.num_epochs):
        box.pre_epoch_process(epoch=epoch)
        for batch, targets, supplement in box.train_data_loader:
            box.pre_forward_process()
            box.post_forward_process(box.forward_process(batch, targets, supplement))
        box.post_epoch_process()


def main() -> None:
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    archive = dict(np.load(job["data"]))
    data = Images(archive, job["augment"])
    started = time.perf_counter()
    for _ in range(int(sys.argv[2])):
        train(job, archive, data)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main()
