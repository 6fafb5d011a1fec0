"""Several methods at once: cross-entropy, plus the weighted terms that each method adds to it.

    L = CE(y, p_1(student)) + sum_m w_m (L_m - the term of L_m called cross_entropy)

Most papers add `kd` to their own loss; this method makes such sums. Each method that takes part is called a part. The term that
a part calls `cross_entropy` is left out, since the sum has it already.

Parts with several stages (fitnets, fsp, activation_boundaries, factor_transfer) first run all their stages except the last,
each part by itself, in the order of the parts, for as many epochs as without the others. The remaining epochs are the last
stage of all parts, in which all terms are added. A part with a single stage begins there: its schedules run over the shared
stage. A method that overrides `step`, `classifiers` or `begin_stage` (such as one with generations) cannot be a part.

Methods:
      combine: {methods: [kd, attention_transfer], weights: [1.0, 0.5], settings: [kd.temperature=2]}

Verified by composition: each part is verified in its own file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from stillhouse.data.hashing import derive_seed
from stillhouse.distill.method import Card, Helper, Method, MethodError, Setup, Stage, Step, hyperparameter
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.methods._other_methods import make_other, read_settings
from stillhouse.models.architecture import Architecture

_LABELS_TERM = "cross_entropy"
_STAGE_JOINT = "."


class Layers(nn.Module):
    """Records which of the student's layers each part reads, and the stages of each part; has no weights."""

    def __init__(self, of_parts: Mapping[str, Sequence[str]], stages: Mapping[str, Sequence[Stage]] | None = None) -> None:
        super().__init__()
        self.of_parts = {name: tuple(layers) for name, layers in of_parts.items()}
        self.stages = {name: tuple(of_part) for name, of_part in (stages or {}).items()}

    @property
    def shared_stage_is_late(self) -> bool:
        """Whether stages of single parts come before the stage that all parts share."""
        return any(len(stages) > 1 for stages in self.stages.values())


@dataclass(frozen=True, kw_only=True)
class Combine(Method):
    """The sum of what several methods add to cross-entropy."""

    card: ClassVar[Card] = Card(
        title="Several methods at once",
        family="L",
        equations="cross-entropy plus the weighted sum of the methods' own terms; first stages one by one, then all together",
        suggested="kd together with a method on feature maps, as most of their papers report",
        interactions="the methods' own weights apply, too; methods with their own training step, classifiers or generations "
        "cannot take part",
    )

    methods: tuple[str, ...] = hyperparameter(("kd", "attention_transfer"), help="names of the methods to add")
    weights: tuple[float, ...] = hyperparameter((), help="one weight >= 0 for the terms of each method; by default 1 each")
    settings: tuple[str, ...] = hyperparameter((), help="hyper-parameters of the methods, as in 'kd.temperature=2'")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods must name at least one method, and no method twice, got {list(self.methods)}")
        if self.weights and len(self.weights) != len(self.methods):
            raise ValueError(
                f"weights must have one entry for each of the {len(self.methods)} methods, got {len(self.weights)}"
            )
        for weight in self.weights:
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"weights must be >= 0, got {weight!r}")
        _ = self.parts

    @classmethod
    def other_methods(cls, hyperparameters: Mapping[str, Any]) -> Sequence[str]:
        return list(hyperparameters["methods"])

    @cached_property
    def parts(self) -> Mapping[str, Method]:
        """The parts by name, without those of weight 0.

        Raises:
            MethodError: a method cannot be a part.
            ValueError: a setting breaks the rule of a part's hyper-parameter.
        """
        if "combine" in self.methods:
            raise MethodError("cannot combine 'combine': it is such a sum itself; name its methods instead", names=["combine"])
        settings = read_settings(self.settings, self.methods)
        parts = {name: make_other(name, settings.get(name, {}), doing="combine") for name in self.methods}
        return {name: part for name, part in parts.items() if self.weight(name)}

    def weight(self, name: str) -> float:
        return self.weights[self.methods.index(name)] if self.weights else 1.0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        return {
            f"{name}.{key}": kind for name, part in self.parts.items() for key, kind in part.knowledge(teacher, student).items()
        }

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        return list(dict.fromkeys(layer for part in self.parts.values() for layer in part.student_layers(teacher, student)))

    @property
    def differentiates_images(self) -> bool:
        return any(part.differentiates_images for part in self.parts.values())

    @property
    def needs_whole_batch(self) -> bool:
        return any(part.needs_whole_batch for part in self.parts.values())

    def stages(self, setup: Setup) -> Sequence[Stage]:
        """The first stages of the parts, one by one, then one that all share, at the lowest of their rates and bounds.

        Raises:
            MethodError: a part never computes the student's logits, or the first stages take all epochs.
        """
        of_parts = {name: part.stages(setup) for name, part in self.parts.items()}
        for name, stages in of_parts.items():
            if stages[-1].until is not None:
                raise MethodError(f"cannot combine '{name}': its training never computes the student's logits", names=[name])
        first = [(name, stage) for name, stages in of_parts.items() for stage in stages[:-1]]
        last = [stages[-1] for stages in of_parts.values()]
        bounds = [stage.gradient_clip for stage in last if stage.gradient_clip is not None]
        joint = Stage(
            epochs=setup.epochs,
            rate_factor=min(stage.rate_factor for stage in last),
            gradient_clip=min(bounds, default=None),
        )
        if not first:
            return (joint,)
        taken = sum(stage.epochs for _, stage in first)
        if taken >= setup.epochs:
            owners = ", ".join(dict.fromkeys(name for name, _ in first))
            raise MethodError(
                f"has no epoch left for the stage that all parts share: the first stages of {owners} take {taken} of "
                f"{setup.epochs} epochs; make their shares smaller or train longer"
            )
        shared = [key for name, stages in of_parts.items() for key in self._needed(name, stages[-1], setup)]
        return [
            *(
                replace(stage, name=f"{name}{_STAGE_JOINT}{stage.name}", knowledge=self._needed(name, stage, setup))
                for name, stage in first
            ),
            replace(joint, epochs=setup.epochs - taken, knowledge=tuple(shared)),
        ]

    def _needed(self, name: str, stage: Stage, setup: Setup) -> tuple[str, ...]:
        """The names of the knowledge that the part reads in its stage."""
        keys = stage.knowledge
        if keys is None:
            keys = tuple(self.parts[name].knowledge(setup.teacher, setup.student)) if setup.teacher is not None else ()
        return tuple(f"{name}.{key}" for key in keys)

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        layers = {name: part.student_layers(setup.teacher, setup.student) for name, part in self.parts.items()}
        stages = {name: part.stages(setup) for name, part in self.parts.items()}
        helpers = {f"{name}.{key}": helper for name, part in self.parts.items() for key, helper in part.modules(setup).items()}
        return helpers | {"layers": Helper(module=Layers(layers, stages), trainable=False)}

    def loss(self, step: Step) -> dict[str, Tensor]:
        owner, joint, stage = step.stage.name.partition(_STAGE_JOINT)
        if joint:
            own = self.parts[owner].loss(_step_of(owner, replace(step, stage=replace(step.stage, name=stage))))
            labels = {_LABELS_TERM: own[_LABELS_TERM]} if _LABELS_TERM in own else {}
            return labels | self._weighted(owner, own)
        terms = {_LABELS_TERM: step.supervised()}
        layers = step.modules["layers"]
        assert isinstance(layers, Layers)
        for name, part in self.parts.items():
            stages = layers.stages.get(name, (step.stage,))
            progress = step.stage_progress if len(stages) == 1 and layers.shared_stage_is_late else step.progress
            alone = _step_of(name, replace(step, stage=replace(stages[-1], epochs=step.stage.epochs), progress=progress))
            terms |= self._weighted(name, part.loss(alone))
        return terms

    def _weighted(self, name: str, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"{name}.{key}": self.weight(name) * term for key, term in terms.items() if key != _LABELS_TERM}


def _step_of(name: str, step: Step) -> Step:
    """The step as the part receives it when it runs by itself, with its own random draws."""
    layers = step.modules["layers"]
    assert isinstance(layers, Layers)
    return replace(
        step,
        student_features={key: value for key, value in step.student_features.items() if key in layers.of_parts[name]},
        teacher=_own(name, step.teacher),
        modules=_own(name, step.modules),
        seed=derive_seed(step.seed, name),
        _generator=None,
    )


def _own(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
