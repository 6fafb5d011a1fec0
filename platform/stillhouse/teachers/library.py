"""The library of teachers: trained once, then found by their content; or loaded from weights."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillhouse import tasks
from stillhouse.data.datasets import ImageData
from stillhouse.data.hashing import derive_seed
from stillhouse.data.views import Views
from stillhouse.device import free_memory
from stillhouse.distill.evaluation import evaluate
from stillhouse.distill.method import Method
from stillhouse.distill.trainer import Trainer
from stillhouse.durable import Damaged, canonical_json, make_folder, set_aside, write_checked
from stillhouse.errors import Interrupted, UsageError
from stillhouse.home_access.node_home import NodeHome
from stillhouse.models.checkpoint_files import checkpoint_file
from stillhouse.models.given_content import given_content
from stillhouse.models.reset import reset_weights
from stillhouse.models.weights import load_weights, save_weights, weights_hash
from stillhouse.spec.metric import ACCURACY
from stillhouse.teachers.cards import WEIGHTS, read_card, stored_cards
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.given_checks import doubts, unfit_outputs

CHECKPOINT_INTERVAL_S = 10.0


@dataclass(frozen=True, kw_only=True)
class LoadedTeacher:
    """A teacher in evaluation mode.

    Attributes:
        path: its weights in the library.
        validation_value: of the task's metric, on this data set's validation split; None if there is none.
        train_seconds: how long its training took, in this or an earlier call; 0 for given weights.
        trained_now: whether this call trained it.
        doubts: what looks wrong about it, with the remedy, as sentences.
        unfit_outputs: as `given_checks.unfit_outputs`.
    """

    definition: TeacherDefinition
    model: nn.Module
    key: str
    path: Path
    weights_hash: str
    validation_value: float | None
    train_seconds: float
    trained_now: bool
    doubts: tuple[str, ...] = ()
    unfit_outputs: str = ""


class TeacherLibrary:
    """Teachers under one folder: `<root>/<key>/weights.safetensors` and `card`, written last.

    Args:
        root: an absolute path.
        home: the home that contains the folder, for a node that cannot access it.
    """

    def __init__(self, root: Path, home: NodeHome | None = None) -> None:
        self.root = root
        self._home = home

    def obtain(
        self,
        definition: TeacherDefinition,
        data: ImageData,
        views: Views,
        *,
        device: str = "cpu",
        progress: Callable[[str], None] = lambda _text: None,
        ending: Callable[[], bool] = lambda: False,
    ) -> LoadedTeacher:
        """Finds, loads or trains the teacher. Interrupted training continues at its checkpoint.

        Args:
            views: the sweep's policy; the teacher is trained on as many views of it as it has epochs.
            ending: whether training is to end after the current epoch.

        Raises:
            Interrupted: training was to end; its checkpoint is written.
            UsageError: weights that cannot be read or do not fit the model.
        """
        metric = tasks.of(data).metric
        key, column = definition.key(data, views), metric.column("validation")
        given = definition.given()
        folder = self.root / key
        make_folder(folder)
        with _locked(folder / "lock"):
            self._pull(folder / WEIGHTS, folder / "card")
            model, card = _build(definition), read_card(folder)
            if card is not None and not _restore(model, folder / WEIGHTS, card["weights_hash"]):
                # Damaged since: knowledge sealed under the card's hash must not come from other weights.
                card = None
            if card is not None and not _starts_from(card, given):
                model, card = _build(definition), None
            is_new, seconds = card is None, 0.0
            if is_new and definition.is_trained:
                progress(f"teacher {definition.name}: training {definition.model} for {definition.epochs} epochs")
                model, seconds = self._train(definition, data, views, folder, given, device, progress, ending)
                # What the training held beside the model: the data set's copy, the optimiser, gradients, activations.
                model.zero_grad(set_to_none=True)
                free_memory()
            elif is_new and definition.weights is not None:
                definition.load_given(model)
            model = definition.adapt(model).to(device).eval().requires_grad_(False)
            if card is None:
                card = _make_card(definition, data, model, seconds, device) | {"given": given}
                self._store(folder, definition, model, card)
            elif "given" not in card:
                card = card | {"given": given}
                self._store_card(folder, card)
        value = card.get(column)
        progress(f"teacher {definition.name}: {'ready' if value is None else f'validation {metric.label} {value:.4f}'}")
        return LoadedTeacher(
            definition=definition,
            model=model,
            key=key,
            path=folder / WEIGHTS,
            weights_hash=card["weights_hash"],
            validation_value=value,
            train_seconds=card["train_seconds"],
            trained_now=is_new and definition.is_trained,
            doubts=tuple(doubts(definition, model, data, device)),
            unfit_outputs=unfit_outputs(model, data, device),
        )

    def content(self, definition: TeacherDefinition, data: ImageData, views: Views) -> str | None:
        """The hash of the weights that `obtain` would load, without training; None if only training can tell.

        Of a user-defined model that begins from other weights than the stored teacher did, a text that is no such hash.

        Raises:
            UsageError: weights that cannot be read or do not fit the model.
        """
        card = read_card(self.root / definition.key(data, views))
        if card is not None:
            given = definition.given()
            return str(card["weights_hash"]) if _starts_from(card, given) else f"trained from {given}"
        if definition.untrained:
            return weights_hash(_build(definition))
        if definition.weights is None or definition.is_trained or not checkpoint_file(definition.weights)[0].is_file():
            return None
        model = _build(definition)
        definition.load_given(model)
        return weights_hash(model)

    def _store(self, folder: Path, definition: TeacherDefinition, model: nn.Module, card: Mapping[str, Any]) -> None:
        """Writes the weights, then the card, so that no card exists without its weights; removes the checkpoint."""
        save_weights(model, folder / WEIGHTS, {"model": definition.model})
        self._push(folder / WEIGHTS)
        self._store_card(folder, card)
        (folder / "checkpoint").unlink(missing_ok=True)
        if self._home is not None:
            self._home.drop(folder / "checkpoint")

    def _store_card(self, folder: Path, card: Mapping[str, Any]) -> None:
        write_checked(folder / "card", canonical_json(card).encode())
        self._push(folder / "card")

    def _pull(self, *files: Path) -> None:
        for file in files:
            if self._home is not None:
                self._home.pull(file)

    def _push(self, *files: Path) -> None:
        for file in files:
            if self._home is not None:
                self._home.push(file)

    def entries(self) -> Iterator[dict[str, Any]]:
        """The cards of all stored teachers, with their `key` and `bytes`."""
        return stored_cards(self.root)

    def _train(
        self,
        definition: TeacherDefinition,
        data: ImageData,
        views: Views,
        folder: Path,
        given: str,
        device: str,
        progress: Callable[[str], None],
        ending: Callable[[], bool],
    ) -> tuple[nn.Module, float]:
        def make() -> Trainer:
            return Trainer(
                new_student=lambda: _begun(definition),
                method=Method(),
                data=data,
                views=replace(views, count=definition.epochs),
                training=definition.training,
                epochs=definition.epochs,
                seed=definition.seed,
                student_name=definition.model,
                device=device,
            )

        trainer, metric = make(), tasks.of(data).metric
        checkpoint = folder / "checkpoint"
        self._pull(checkpoint)
        try:
            begun = trainer.load(checkpoint)
        except FileNotFoundError:
            begun = {}
        except Damaged:
            begun, trainer = {}, make()
        if not _starts_from(begun, given):
            trainer = make()
        saved = time.monotonic()
        while not trainer.finished:
            entry = trainer.run_epoch()
            value = entry.get(metric.column("validation"))
            progress(
                f"teacher {definition.name}: epoch {entry['epoch']}/{definition.epochs}, loss {entry['train_loss']:.3f}"
                + ("" if value is None else f", validation {metric.label} {value:.4f}")
            )
            if trainer.finished:
                break
            interrupted = ending()
            if interrupted or time.monotonic() - saved > CHECKPOINT_INTERVAL_S:
                trainer.save(checkpoint, {"given": given})
                self._push(checkpoint)
                saved = time.monotonic()
            if interrupted:
                raise Interrupted(f"teacher {definition.name}: interrupted after epoch {entry['epoch']}")
        trained: nn.Module = trainer.student
        if definition.weights is not None:
            # Without the conversion of pixels, which every loaded teacher gets.
            trained = _build(definition).to(device)
            trained.load_state_dict(trainer.student.state_dict())
        return trained, trainer.train_seconds


def score(model: nn.Module, data: ImageData, split: str, device: str) -> float:
    """The value of the task's metric on `validation` or `test`."""
    return evaluate(model, data, data.validation if split == "validation" else data.test, device)


def _make_card(
    definition: TeacherDefinition, data: ImageData, model: nn.Module, train_seconds: float, device: str
) -> dict[str, Any]:
    """What the library records of a teacher; its metric is named unless it is accuracy, as in cards of the first release."""
    metric = tasks.of(data).metric
    judged = {metric.column("validation"): score(model, data, "validation", device)} if len(data.validation) else {}
    return {
        "model": definition.model,
        "options": dict(definition.options),
        "dataset": data.name,
        **({"folder": data.folder} if data.folder else {}),
        "fingerprint": data.fingerprint,
        "weights_hash": weights_hash(model),
        **judged,
        **({} if metric == ACCURACY else {"metric": metric.model_dump()}),
        "train_seconds": train_seconds,
        "made": time.time(),
    }


def _starts_from(stored: Mapping[str, Any], given: str) -> bool:
    """Whether a stored card or checkpoint began from these weights; those of the first release do not tell."""
    return bool(stored.get("given", given) == given)


def _build(definition: TeacherDefinition) -> nn.Module:
    """The model before its training or loading; for an untrained teacher, as it stays.

    Raises:
        ValueError: an untrained teacher's function brings weights, and a layer cannot draw new ones.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(definition.seed, "teacher"))
        model = definition.build()
    if definition.untrained and given_content(
        definition.model, definition.options, definition.num_classes, definition.input_shape
    ):
        # A user-defined function may return a trained network.
        return reset_weights(model, derive_seed(definition.seed, "untrained"))
    return model


def _restore(model: nn.Module, path: Path, digest: str) -> bool:
    """Whether the file at `path` holds the weights with the hash `digest`; they are the model's then."""
    try:
        load_weights(model, path)
    except UsageError:
        return False
    return weights_hash(model) == digest


def _begun(definition: TeacherDefinition) -> nn.Module:
    """The model as its training begins: with given weights if there are some, which see the pixels that they expect."""
    model = definition.build()
    if definition.weights is None:
        return model
    definition.load_given(model)
    return definition.adapt(model)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of one teacher, so that two sweeps do not train it twice."""
    if os.path.lexists(path) and not path.is_file():
        set_aside(path)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
