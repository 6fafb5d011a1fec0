"""The spec's keys `teachers` and `students`: networks, their options and where their weights come from."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from stillhouse.spec.claims import Resources
from stillhouse.spec.display import show
from stillhouse.spec.recipes import HEADS
from stillhouse.spec.records import StudentChoice, operator_settings
from stillhouse.spec.rename import rename_problem
from stillhouse.spec.training import Training
from stillhouse.spec.values import Section, Setting, StudentName, invalid, parse_plain
from stillhouse.user_code import is_of_library


def gather_options(entry: Any, own: frozenset[str]) -> Any:
    """An entry as the user writes it; keys that are not in `own` are moved into `options`."""
    if isinstance(entry, str):
        entry = {"model": entry}
    if not isinstance(entry, Mapping):
        return entry
    gathered = {key: value for key, value in entry.items() if key in own}
    return {**gathered, "options": {key: value for key, value in entry.items() if key not in own}}


class TeacherTraining(Training):
    """The recipe of a teacher that the sweep trains, once.

    Attributes:
        epochs: how long it is trained.
        seed: determines its first weights and its batches.
    """

    epochs: Annotated[int, Field(ge=1)] = 30
    seed: Annotated[int, Field(ge=0)] = 0


def _parse_rename(value: Any) -> dict[str, str | None]:
    good = isinstance(value, Mapping) and all(isinstance(key, str) and key for key in value)
    if not good or not all(item is None or isinstance(item, str) for item in value.values()):
        raise invalid(f"must be a mapping such as {{'^linear': fc}}, with null to leave weights out, got {show(value)}")
    for pattern, replacement in value.items():
        if problem := rename_problem(pattern, replacement):
            raise invalid(problem)
    return dict(value)


def start_words(start: Mapping[str, Any]) -> str:
    """The weights with which a training starts, readable: `starts with resnet18.pth, new head`."""
    weights = str(start["weights"])
    shown = weights if is_of_library(weights) else Path(weights).name
    return f"starts with {shown}" + (", new head" if start.get("head") == "new" else "")


def _is_user_defined(model: Any) -> bool:
    return isinstance(model, str) and ":" in model and not is_of_library(model)


NORMALIZATIONS = ("dataset", "imagenet", "0..1", "-1..1", "0..255")


def _parse_normalization(value: Any) -> str | dict[str, list[float]] | None:
    if value is None or (isinstance(value, str) and value in NORMALIZATIONS):
        return value
    if isinstance(value, Mapping) and set(value) == {"mean", "std"}:
        lists = {name: each if isinstance(each, list | tuple) else [each] for name, each in value.items()}
        numbers = [each for values in lists.values() for each in values]
        if all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
            return {name: [float(each) for each in values] for name, values in lists.items()}
    raise invalid(f"must be one of {', '.join(NORMALIZATIONS)} or {{mean: [...], std: [...]}}, got {show(value)}")


class TeacherSpec(Section):
    """One teacher; keys that are not listed here are options of its model.

    Attributes:
        model: a shipped model, or `module:function` of a user-defined one.
        options: options of the model; in a spec they stand beside `model`.
        weights: a checkpoint file or a folder of timm (relative to the spec file's folder), `torchvision:<weights enum>`,
            `timm:<name>` from the local cache, or `mlflow:models:/name/1`; null trains the teacher by the recipe `train`.
        rename: regular expressions with their replacements, which give the weights the names that the model has, in order;
            null leaves out the weights whose name matches.
        head: `new` draws the weights that depend on the number of classes anew, `kept` takes those of the file; both train the
            teacher further by the recipe `train`. Null uses the weights as they are.
        normalization: of the pixels, as given weights expect it: `dataset`, `imagenet`, `0..1`, `-1..1`, `0..255`, or
            `{mean: [...], std: [...]}` for pixels in [0, 1]. Null takes what torchvision, timm, or a file beside the weights
            states, or else that of the data set.
        num_classes: the expected number of classes; checked against the data set.
        train: how a teacher without given weights, or with a `head`, is trained; the keys of `training`, `epochs` and `seed`.
        resources: what it claims of the cluster.
        replicas: how many actors share its work, each with these `resources`: they fill views together; a trial calls
            the one on its node, or else the one with the fewest waiting calls.
    """

    model: str
    options: dict[str, Annotated[Any, PlainValidator(parse_plain)]] = Field(default_factory=dict)
    weights: str | None = None
    rename: Annotated[dict[str, str | None], PlainValidator(_parse_rename)] = Field(default_factory=dict)
    head: Literal["new", "kept"] | None = None
    normalization: Annotated[str | dict[str, list[float]] | None, PlainValidator(_parse_normalization)] = None
    num_classes: Annotated[int, Field(ge=2)] | None = None
    train: TeacherTraining = Field(default_factory=TeacherTraining)
    resources: Resources = Field(default_factory=Resources)
    replicas: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def start(self) -> str:
        """The given weights from which its training begins, readable; empty if there are none."""
        return start_words({"weights": self.weights, "head": self.head}) if self.weights and self.head else ""

    @property
    def is_trained(self) -> bool:
        """Whether the sweep trains it, from new weights or from given ones."""
        return self.weights is None or self.head is not None

    @classmethod
    def from_entry(cls, entry: Any) -> Any:
        """The spec's entry in the layout of the fields."""
        own = frozenset(cls.model_fields) - {"options"}
        if isinstance(entry, Mapping) and _is_user_defined(entry.get("model")):
            # A function may have options of these names, as it could before they were keys.
            own -= {"head"} if entry.get("head") not in HEADS or not entry.get("weights") else set()
            own -= {"rename"} if not isinstance(entry.get("rename"), Mapping) or not entry.get("weights") else set()
        return gather_options(entry, own)


def _name_operator(value: Any) -> Any:
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if isinstance(name, str) and (options is None or isinstance(options, Mapping)):
            return {name: dict(options or {})}
    raise invalid(f"must be the name of an operator or {{name: {{option: value}}}}, got {show(value)}")


class StudentSpec(Section):
    """One entry of `students`; keys that are not listed here are options of its model, or priors of them.

    Attributes:
        model: a shipped model, or `module:function` of a user-defined one.
        name: the label in every table; the model's name unless given.
        options: options of the model, or priors of them; in a spec they stand beside `model`.
        weights: where a shipped model or one of a library starts, as `teachers.NAME.weights` without `mlflow:`; null draws new
            weights. A user-defined function takes this key, `rename` and `head` as options.
        rename: as `teachers.NAME.rename`.
        head: `new` draws the weights that depend on the number of classes anew; null and `kept` take those of `weights`.
        source: the key `from`: the teacher whose model and trained weights the student begins with.
        compress: operators that make it smaller, in order, each as {name: settings}.
    """

    model: str = ""
    name: StudentName = ""
    options: dict[str, Setting] = Field(default_factory=dict)
    weights: str | None = None
    rename: Annotated[dict[str, str | None], PlainValidator(_parse_rename)] = Field(default_factory=dict)
    head: Literal["new", "kept"] | None = None
    source: Annotated[str | None, Field(alias="from")] = None
    compress: tuple[Annotated[dict[str, dict[str, Setting]], BeforeValidator(_name_operator)], ...] = ()

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.source is None and not self.model:
            raise invalid("is required; name the model, such as model: mlp", below="model")
        if self.source is not None and (self.model or self.options):
            given = "model" if self.model else next(iter(self.options))
            raise invalid(f"must not be given with from: {self.source}, whose model the student has", below=given)
        if self.source is not None and self.weights is not None:
            raise invalid(f"must not be given with from: {self.source}, whose weights the student has", below="weights")
        if self.weights is not None and self.weights.startswith("mlflow:"):
            raise invalid("must be a file, torchvision:<weights enum> or timm:<name>; export the model first", below="weights")
        if self.source is not None and not self.name:
            raise invalid("must be given to a student with from; name it, such as name: pruned", below="name")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """Values and priors of the model's options by name, and of the operators' by their place: `compress[0].prune.ratio`."""
        return {**self.options, **operator_settings(self.compress)}

    def choose(self, values: Mapping[str, Any]) -> StudentChoice:
        """The concrete student with a value for each of `settings`."""
        compress = [
            {name: {option: values[f"compress[{place}].{name}.{option}"] for option in options}}
            for place, entry in enumerate(self.compress)
            for name, options in entry.items()
        ]
        return StudentChoice(
            name=self.name,
            model=self.model,
            options={name: values[name] for name in self.options},
            compress=compress,
            derived_from=self.source,
            start=self.start,
        )

    @property
    def start(self) -> dict[str, Any]:
        """The weights that it starts with and how they are read; empty for new ones."""
        if self.weights is None:
            return {}
        told = {"weights": self.weights, "rename": self.rename, "head": self.head}
        return {key: value for key, value in told.items() if value}

    def only(self, wanted: Callable[[Any], bool]) -> "StudentSpec":
        """The student without the settings that are not wanted."""
        compress = tuple(
            {name: {key: value for key, value in options.items() if wanted(value)} for name, options in entry.items()}
            for entry in self.compress
        )
        options = {key: value for key, value in self.options.items() if wanted(value)}
        return self.model_copy(update={"options": options, "compress": compress})

    def to_entry(self) -> dict[str, Any]:
        """The entry as the user writes it, with priors as they are."""
        if self.source is None:
            entry: dict[str, Any] = {"model": self.model, "name": self.name, **self.options}
        else:
            entry = {"name": self.name, "from": self.source}
        entry |= self.start
        return {**entry, "compress": self.compress} if self.compress else entry

    @classmethod
    def from_entry(cls, entry: Any) -> Any:
        """The spec's entry in the layout of the fields: a bare name is a model, its label is the model's name."""
        own = {"model", "name", "from", "compress"}
        if not isinstance(entry, Mapping) or not _is_user_defined(entry.get("model")):
            own |= {"weights", "rename", "head"}
        entry = gather_options(entry, frozenset(own))
        if isinstance(entry, Mapping) and isinstance(entry.get("model"), str) and "name" not in entry:
            return {**entry, "name": re.sub(r"[^A-Za-z0-9._:-]", "-", entry["model"]).lstrip("._:-") or "student"}
        return entry
