"""What methods share that compare how a batch's samples lie to one another, whatever space they lie in."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stillhouse.distill.method import Method, MethodError, Step, Unsuitable, hyperparameter
from stillhouse.knowledge.kinds import Knowledge, feature
from stillhouse.models.architecture import Architecture, UnknownLayer

Relation = Callable[[Tensor, Tensor], Tensor]
"""A scalar from the student's outputs [B, K] and the teacher's [B, K']; a batch of one must have a value too."""

_SHORTEST = 1e-12


def unit_rows(vectors: Tensor, epsilon: float = 0.0) -> Tensor:
    """[..., K] divided by its length plus epsilon; a vector of zeros stays one, with a gradient of 0.

    Dividing by a clamped length instead multiplies the gradient of such a vector by 1e12.
    """
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / (lengths.masked_fill(lengths <= _SHORTEST, math.inf) + epsilon)


@dataclass(frozen=True, kw_only=True)
class EmbeddingMethod(Method):
    """Cross-entropy plus relations between the outputs of one layer of the student and one of the teacher.

    Relations of weight 0 are not computed; without any other, nothing is asked of the teacher.
    """

    student_layer: str | None = hyperparameter(None, help="the student's layer; by default its embedding")
    teacher_layer: str | None = hyperparameter(None, help="the teacher's layer; by default its embedding")

    def relations(self) -> Mapping[str, tuple[float, Relation]]:
        """{term: (its weight, its value)}."""
        raise NotImplementedError

    @property
    def active(self) -> bool:
        """False when weights of 0 switch the method off: nothing is asked of the teacher then."""
        return any(weight for weight, _ in self.relations().values())

    @property
    def needs_whole_batch(self) -> bool:
        """Relations hold between the samples of a batch."""
        return self.active

    def default_layer(self, architecture: Architecture) -> str | None:
        """The layer read where none is named; None where the network has nothing to offer."""
        return architecture.pooled if architecture.pooled in architecture.shapes else None

    def layer(self, architecture: Architecture, *, whose: Literal["student", "teacher"]) -> str:
        """The layer that the method reads.

        Raises:
            MethodError: the named layer is not there, or the teacher has no default one.
            Unsuitable: the student has no default one.
        """
        named = self.student_layer if whose == "student" else self.teacher_layer
        if named is not None:
            try:
                architecture.shape(named)
            except UnknownLayer as error:
                raise MethodError(f"{whose}_layer: {error}", names=error.names) from error
            return named
        default = self.default_layer(architecture)
        if default is None:
            kind = Unsuitable if whose == "student" else MethodError
            raise kind(f"needs a layer in front of the classifier, {whose} {architecture.name} has none; name a {whose}_layer")
        return default

    def knowledge(self, teacher: Architecture, student: Architecture) -> Mapping[str, Knowledge]:
        if not self.active:
            return {}
        self.layer(student, whose="student")
        return {"embedding": feature(self.layer(teacher, whose="teacher"))}

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        return [self.layer(student, whose="student")] if self.active else []

    def embeddings(self, step: Step) -> tuple[Tensor, Tensor]:
        """The student's outputs [B, K] and the teacher's [B, K'], flattened."""
        (student,) = step.student_features.values()
        return student.flatten(1), step.teacher["embedding"].flatten(1)

    def loss(self, step: Step) -> dict[str, Tensor]:
        terms = super().loss(step)
        if self.active:
            student, teacher = self.embeddings(step)
            for name, (weight, relation) in self.relations().items():
                if weight:
                    terms[name] = weight * relation(student, teacher)
        return terms
