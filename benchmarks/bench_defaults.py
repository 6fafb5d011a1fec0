"""Training at its defaults: every shipped student with `scratch`, and every method on one student, on small data sets.

    python benchmarks/bench_defaults.py --root DIR --out FILE [--students a,b] [--methods a,b] [--data a,b]
    python benchmarks/bench_defaults.py --table FILE

DIR holds torchvision's MNIST and FashionMNIST, `cifar10_jpeg/{train,test}/CLASS/*.jpg`, and the BCCD data set
(`bccd/VOCdevkit/VOC2007`), whose blood cells are cut out of their photographs. Images are few and small and trainings are
short, so that nothing but the defaults of a spec (`stillhouse.spec.recipes`) keeps a student from collapsing. The teacher of
the methods is trained once per data set, with the same defaults. No Ray: the teacher computes its knowledge in the trial's
process.

Appends one JSON line per run to FILE, and passes over the runs that it holds, so that an interrupted benchmark goes on where it
was. The cheapest networks come first. Exits with 1 if a run is no better than a model that ignores the image.
"""

import argparse
import functools
import itertools
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

STEPS = 64
"""Of a training. The teacher takes twice as many."""
TEACHER, STUDENT = "resnet14", "resnet8"
WIDTHS = {"resnet50": 0.25, "resnet32x4": 0.5}
"""Of the networks that would take most of the time at their own width."""
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def photographs(root: str, train: int, test: int, classes: int) -> tuple[Arrays, Arrays]:
    """The first photographs of each of the first classes of CIFAR-10 as JPEG files, uint8 [N, 3, 32, 32]."""
    halves = []
    for half, count in (("train", train), ("test", test)):
        images, labels = [], []
        folders = sorted(path for path in Path(root, "cifar10_jpeg", half).iterdir() if path.is_dir())
        for label, folder in enumerate(folders[:classes]):
            for file in sorted(folder.glob("*.jpg"))[: count // classes]:
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
    """Of each 240 training images, or a few of each class, and 160 validation images."""
    own = f"{Path(__file__).stem}:"
    load = functools.partial(load_dataset, validation=160, size=12)
    many = {"limit": 400, "limit_test": 100}
    few = {"limit": 280, "limit_test": 100}
    return {
        "digits": functools.partial(load_dataset, "digits", validation=160, options={"limit": 400}),
        "digits, 12 a class": functools.partial(load_dataset, "digits", validation=160, options={"limit": 280}),
        "MNIST": functools.partial(load, "mnist", root=root, options=many),
        "Fashion-MNIST": functools.partial(load, "fashion_mnist", root=root, options=many),
        "photographs": functools.partial(
            load, f"{own}photographs", options={"root": root, "train": 400, "test": 100, "classes": 5}
        ),
        "photographs, 12 a class": functools.partial(
            load, f"{own}photographs", options={"root": root, "train": 208, "test": 100, "classes": 4}
        ),
        "blood cells": functools.partial(load, f"{own}blood_cells", options={"root": root, "train": 400, "test": 100}),
        "MNIST, 12 a class": functools.partial(load, "mnist", root=root, options=few),
        "hand signs (drawn)": functools.partial(
            load_dataset, f"{own}hand_signs", validation=0.2, options={"train": 1100, "test": 200}
        ),
    }


def views_of(data: ImageData) -> Views:
    return Views(({"crop": {"padding": 1}},), 4, data.input_shape, len(data.train))


def new_model(name: str, data: ImageData) -> nn.Module:
    width = {"width": WIDTHS[name]} if name in WIDTHS else {}
    return build_model(name, num_classes=data.num_classes, input_shape=data.input_shape, **width)


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


def epochs_of(data: ImageData, training: Training, steps: int) -> int:
    """As many epochs as `steps` steps take."""
    return -(-steps // -(-len(data.train) // training.batch_size))


def cost(data: ImageData, student: str) -> float:
    """Seconds of a step of training."""
    model, images = new_model(student, data), torch.zeros(16, *data.input_shape)
    started = time.process_time()
    model(images).sum().backward()
    return time.process_time() - started


def planned(arguments: argparse.Namespace, data: ImageData) -> list[tuple[str, str]]:
    """(method, student) of every run on a data set, the cheapest students first."""
    shape: dict[str, Any] = {"num_classes": data.num_classes, "input_shape": data.input_shape}
    students = [name for name in arguments.students if not model_problems(name, {}, **shape)]
    runs = [(cost(data, student), "scratch", student) for student in students]
    if arguments.methods:
        runs += [(cost(data, arguments.student), method, arguments.student) for method in arguments.methods]
    return list(dict.fromkeys((method, student) for _, method, student in sorted(runs)))


def trained_teacher(data: ImageData, training: Training, steps: int) -> nn.Module:
    trained = run(data, "scratch", TEACHER, training, 0, epochs_of(data, training, steps))
    print(f"teacher {TEACHER} {trained.curve[-1]['validation_accuracy']:.3f}", flush=True)
    return trained.student.eval().requires_grad_(False)


class Bench:
    """The data sets, their teachers, and one run after the other."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._teachers: dict[str, nn.Module] = {}
        given = arguments.set
        self._training = Training.model_validate(recipe_defaults(arguments.recipe, given) | given)
        known = data_sets(arguments.root)
        self.data = {name: known[name]() for name in arguments.data or known}

    def runs(self) -> Iterator[tuple[str, str, str, int]]:
        """(data set, method, student, seed), the data sets in turn."""
        plans = [[(name, *each) for each in planned(self._arguments, data)] for name, data in self.data.items()]
        for turn in itertools.zip_longest(*plans):
            for one in turn:
                yield from ((*one, seed) for seed in range(self._arguments.seeds)) if one else ()

    def measure(self, name: str, method: str, student: str, seed: int) -> dict[str, Any]:
        """Trains one student."""
        data, steps = self.data[name], self._arguments.steps
        task = tasks.of(data)
        trivial = task.trivial_value(data.validation.labels)
        line = {"data": name, "method": method, "student": student, "seed": seed, "recipe": self._arguments.recipe}
        line |= {"set": self._arguments.set, "trivial": trivial, "steps": steps}
        if method != "scratch" and name not in self._teachers:
            self._teachers[name] = trained_teacher(data, self._training, 2 * steps)
        started = time.process_time()
        try:
            teacher = None if method == "scratch" else self._teachers[name]
            trainer = run(data, method, student, self._training, seed, epochs_of(data, self._training, steps), teacher)
            value = trainer.curve[-1]["validation_accuracy"]
            line |= {"validation": value, "collapsed": no_better(value, trivial, task.metric, len(data.validation))}
        except Exception as error:
            line |= {"validation": None, "collapsed": None, "error": f"{type(error).__name__}: {error}"}
        return line | {"cpu_s": round(time.process_time() - started, 1)}


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: a row per student and per method, validation accuracy in percent."""
    columns = list(dict.fromkeys(line["data"] for line in lines))
    rows = dict.fromkeys((line["method"], line["student"]) for line in lines)
    cells: dict[tuple[str, str, str], list[str]] = {}
    for line in lines:
        value = "error" if line["validation"] is None else f"{100 * line['validation']:.1f}{' c' if line['collapsed'] else ''}"
        cells.setdefault((line["method"], line["student"], line["data"]), []).append(value)
    text = ["| method | student | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for method, student in rows:
        text.append(
            "| "
            + " | ".join([method, student, *(", ".join(cells.get((method, student, data), [])) for data in columns)])
            + " |"
        )
    return "\n".join(text)


def parse() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [name for name in text.split(";" if ";" in text else ",") if name]

    parser = argparse.ArgumentParser()
    parser.add_argument("--root")
    parser.add_argument("--students", type=names, default=model_names())
    parser.add_argument("--methods", type=names, default=methods.names())
    parser.add_argument("--student", default=STUDENT, help="what the methods train")
    parser.add_argument("--data", type=names, default=None, help="separated by semicolons")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--recipe", type=int, default=NEWEST)
    parser.add_argument("--set", type=json.loads, default={}, help="fields of Training as JSON, in place of the defaults")
    parser.add_argument("--out", type=Path, help="a file that gets one JSON line per run")
    parser.add_argument("--table", type=Path, help="prints the table of such a file, and trains nothing")
    return parser.parse_args()


def stored(path: Path | None) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def main() -> int:
    arguments = parse()
    if arguments.table:
        print(table(stored(arguments.table)))
        return 0
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    lines = stored(arguments.out)
    done = {(line["data"], line["method"], line["student"], line["seed"]) for line in lines}
    bench = Bench(arguments)
    for key in bench.runs():
        if key in done:
            continue
        line = bench.measure(*key)
        lines.append(line)
        shown = line.get("error") or f"{line['validation']:.3f}{'  COLLAPSED' if line['collapsed'] else ''}"
        print(f"{'  '.join(map(str, key))}  {shown}  {line['cpu_s']} s", flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    collapsed = sum(line["collapsed"] is not False for line in lines)
    print(f"{collapsed} of {len(lines)} runs collapsed or failed")
    return 1 if collapsed else 0


if __name__ == "__main__":
    sys.exit(main())
