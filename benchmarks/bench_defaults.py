"""Training at its defaults: every shipped student with `scratch`, and every method on one student, on seven data sets.

    python benchmarks/bench_defaults.py --root DIR [--students a,b] [--methods a,b] [--data a,b] [--out FILE]

DIR holds torchvision's MNIST and FashionMNIST, `cifar10_jpeg/{train,test}/CLASS/*.jpg`, and the BCCD data set
(`bccd/VOCdevkit/VOC2007`), whose blood cells are cut out of their photographs. Images are few and trainings are short, so that
nothing but the defaults of a spec (`stillhouse.spec.recipes`) keeps a student from collapsing. The teacher of the methods is
trained once per data set. No Ray: the teacher computes its knowledge in the trial's process.

Prints one line per run and one table per data set, and exits with 1 if a run is no better than a model that ignores the image.
"""

import argparse
import functools
import json
import os
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from stillhouse import methods, tasks
from stillhouse.data.datasets import ImageData, load_dataset
from stillhouse.data.views import Views
from stillhouse.distill.calls import InlineTeacher
from stillhouse.distill.hyperparameters import make_method
from stillhouse.distill.sources import InlineKnowledge
from stillhouse.distill.trainer import Trainer
from stillhouse.models.architecture import describe
from stillhouse.models.registry import build_model, model_names, model_problems
from stillhouse.spec.collapse import no_better
from stillhouse.spec.recipes import NEWEST, recipe_defaults
from stillhouse.spec.training import Training

EPOCHS, BATCH = 8, 64
TEACHER, TEACHER_EPOCHS, STUDENT = "resnet14", 16, "resnet8"
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def photographs(root: str, train: int, test: int) -> tuple[Arrays, Arrays]:
    """The first photographs of each class of CIFAR-10 as JPEG files, uint8 [N, 3, 32, 32]."""
    halves = []
    for half, count in (("train", train), ("test", test)):
        images, labels = [], []
        for label, folder in enumerate(sorted(path for path in Path(root, "cifar10_jpeg", half).iterdir() if path.is_dir())):
            for file in sorted(folder.glob("*.jpg"))[: count // 10]:
                images.append(np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1))
                labels.append(label)
        halves.append((np.stack(images), np.array(labels)))
    return halves[0], halves[1]


def blood_cells(root: str, train: int, test: int) -> tuple[Arrays, Arrays]:
    """Red cells, white cells and platelets cut out of photographs, at most a third of red ones, uint8 [N, 3, 32, 32]."""
    names, cells = ("RBC", "WBC", "Platelets"), list[tuple[NDArray[np.uint8], int]]()
    base = Path(root, "bccd", "VOCdevkit", "VOC2007")
    reds = 0
    for file in sorted((base / "Annotations").glob("*.xml")):
        with Image.open(base / "JPEGImages" / f"{file.stem}.jpg") as photograph:
            photograph.load()
            for each in ElementTree.parse(file).getroot().iter("object"):
                label = names.index(str(each.findtext("name")))
                box = [int(float(each.findtext(f"bndbox/{side}") or 0)) for side in ("xmin", "ymin", "xmax", "ymax")]
                reds += label == 0
                if box[2] - box[0] < 8 or box[3] - box[1] < 8 or (label == 0 and reds % 10):
                    continue
                cell = photograph.crop((box[0], box[1], box[2], box[3])).convert("RGB").resize((32, 32))
                cells.append((np.asarray(cell).transpose(2, 0, 1), label))
    order = np.random.default_rng(0).permutation(len(cells))[: train + test]
    images = np.stack([cells[place][0] for place in order])
    labels = np.array([cells[place][1] for place in order])
    return (images[test:], labels[test:]), (images[:test], labels[:test])


def hand_signs(train: int, test: int) -> tuple[Arrays, Arrays]:
    """Drawn hands with one of ten sets of raised fingers, at any angle and in any light, uint8 [N, 3, 32, 32].

    All pixels of an image become brighter and darker together, as in photographs of one object before a wall.
    """
    draw = np.random.default_rng(0)
    raised = [(0,), (1,), (0, 1), (1, 2), (0, 4), (1, 4), (0, 1, 2), (1, 2, 3), (1, 2, 3, 4), (0, 1, 2, 3, 4)]
    rows, columns = np.mgrid[:32, :32]
    images, labels = [], []
    for number in range(train + test):
        label = number % 10
        down, right = draw.normal(19, 1.0), draw.normal(16, 1.0)
        hand = (rows - down) ** 2 + (columns - right) ** 2 < 36
        turn = draw.normal(0, 0.12)
        for finger in raised[label]:
            angle = (finger - 2) * 0.5 + turn
            along = (columns - right) * np.sin(angle) - (rows - down) * np.cos(angle)
            across = (columns - right) * np.cos(angle) + (rows - down) * np.sin(angle)
            hand |= (along > 0) & (along < 15) & (np.abs(across) < 1.6)
        wall, skin = draw.uniform(120, 220, 3), draw.uniform(80, 160, 3)
        light = draw.uniform(0.4, 1.1) * (1 + 0.2 * (columns - 16) / 16)
        image = np.where(hand[None], skin[:, None, None], wall[:, None, None]) * light + draw.normal(0, 6, (3, 32, 32))
        images.append(image.clip(0, 255).astype(np.uint8))
        labels.append(label)
    return (np.stack(images[test:]), np.array(labels[test:])), (np.stack(images[:test]), np.array(labels[:test]))


def data_sets(root: str) -> dict[str, functools.partial[ImageData]]:
    """The data sets, six of them real, with few and many samples of each class."""
    load = functools.partial(load_dataset, validation=0.2)
    own = f"{Path(__file__).stem}:"
    return {
        "digits": functools.partial(load, "digits"),
        "digits, 12 a class": functools.partial(load, "digits", options={"limit": 150}),
        "mnist": functools.partial(load, "mnist", root=root, options={"limit": 800, "limit_test": 500}),
        "fashion": functools.partial(load, "fashion_mnist", root=root, options={"limit": 800, "limit_test": 500}),
        "photographs": functools.partial(load, f"{own}photographs", options={"root": root, "train": 700, "test": 200}),
        "hand signs": functools.partial(load, f"{own}hand_signs", options={"train": 1100, "test": 200}),
        "blood cells": functools.partial(load, f"{own}blood_cells", options={"root": root, "train": 600, "test": 200}),
    }


def views_of(data: ImageData) -> Views:
    return Views(({"crop": {"padding": 1}},), 2, data.input_shape, len(data.train))


def new_model(name: str, data: ImageData) -> nn.Module:
    return build_model(name, num_classes=data.num_classes, input_shape=data.input_shape)


def run(
    data: ImageData, method: str, student: str, training: Training, seed: int, epochs: int, teacher: nn.Module | None = None
) -> Trainer:
    """Trains one student to the end."""
    instance = make_method(method, {})
    architecture = None if teacher is None else describe(teacher, name=TEACHER, input_shape=data.input_shape)
    source = None
    if architecture is not None and teacher is not None:
        own = describe(new_model(student, data), name=student, input_shape=data.input_shape)
        if needs := instance.knowledge(architecture, own):
            source = InlineKnowledge(teacher, needs, data.train.labels)
    trainer = Trainer(
        new_student=functools.partial(new_model, student, data),
        method=instance,
        data=data,
        views=views_of(data),
        training=training,
        epochs=epochs,
        seed=seed,
        teacher=source,
        callable_teacher=InlineTeacher(teacher) if teacher is not None and instance.calls_teacher else None,
        teacher_architecture=architecture,
        teacher_weights=None if teacher is None else teacher.state_dict,
        student_name=student,
    )
    trainer.fit()
    return trainer


def planned(arguments: argparse.Namespace, data: ImageData) -> Iterator[tuple[str, str]]:
    """(method, student) of every run on a data set."""
    for student in arguments.students:
        if not model_problems(student, {}, num_classes=data.num_classes, input_shape=data.input_shape):
            yield "scratch", student
    for method in arguments.methods:
        yield method, arguments.student


def measure(arguments: argparse.Namespace, name: str, data: ImageData) -> Iterator[dict[str, Any]]:
    """The result of every run on one data set."""
    task = tasks.of(data)
    trivial = task.trivial_value(data.validation.labels)
    training = Training.model_validate({"batch_size": BATCH} | recipe_defaults(arguments.recipe) | arguments.set)
    teacher = None
    if arguments.methods:
        trained = run(data, "scratch", TEACHER, training, 0, TEACHER_EPOCHS)
        teacher = trained.student.eval().requires_grad_(False)
        print(f"{name}: teacher {TEACHER} {trained.curve[-1]['validation_accuracy']:.3f}", flush=True)
    for method, student in planned(arguments, data):
        for seed in range(arguments.seeds):
            started = time.perf_counter()
            line: dict[str, Any] = {"data": name, "method": method, "student": student, "seed": seed, "trivial": trivial}
            try:
                trainer = run(data, method, student, training, seed, arguments.epochs, teacher)
                value = trainer.curve[-1]["validation_accuracy"]
                line |= {"validation": value, "collapsed": bool(no_better(value, trivial, task.metric))}
            except Exception as error:
                line |= {"validation": None, "collapsed": True, "error": f"{type(error).__name__}: {error}"}
            yield line | {"seconds": round(time.perf_counter() - started, 1)}


def parse() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--students", type=names, default=model_names())
    parser.add_argument("--methods", type=names, default=methods.names())
    parser.add_argument("--student", default=STUDENT, help="what the methods train")
    parser.add_argument("--data", type=names, default=None)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--recipe", type=int, default=NEWEST)
    parser.add_argument("--set", type=json.loads, default={}, help="fields of Training as JSON, in place of the defaults")
    parser.add_argument("--out", type=Path, help="a file that gets one JSON line per run")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    collapsed = runs = 0
    for name, load in data_sets(arguments.root).items():
        if arguments.data and name.split(",")[0] not in arguments.data and name not in arguments.data:
            continue
        for line in measure(arguments, name, load()):
            runs += 1
            collapsed += line["collapsed"]
            shown = line.get("error") or f"{line['validation']:.3f}"
            mark = "  COLLAPSED" if line["collapsed"] else ""
            who = f"{name}  {line['method']}  {line['student']}  seed {line['seed']}"
            print(f"{who}  {shown}{mark}  {line['seconds']} s", flush=True)
            if arguments.out:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    print(f"{collapsed} of {runs} runs collapsed (a model that ignores the image is as good)")
    return 1 if collapsed else 0


if __name__ == "__main__":
    sys.exit(main())
