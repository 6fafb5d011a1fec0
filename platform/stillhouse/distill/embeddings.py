"""Base class of methods that compare the relations between a batch's samples, whose embeddings may have any width."""

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
"""A scalar from the student's outputs [B, K] and the teacher's [B, K']; must be defined for a batch of one, too."""

_SHORTEST = 1e-12


def unit_rows(vectors: Tensor, epsilon: float = 0.0) -> Tensor:
    """[..., K] divided by its length plus epsilon. A vector of zeros stays 0 and has a gradient of 0.

    Dividing by a clamped length instead multiplies the gradient of such a vector by 1e12.
    """
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / (lengths.masked_fill(lengths <= _SHORTEST, math.inf) + epsilon)


@dataclass(frozen=True, kw_only=True)
class EmbeddingMethod(Method):
    """The supervised loss plus relations between the outputs of one layer of the student and one of the teacher.

    Relations of weight 0 are not computed; if all have weight 0, no teacher is needed.
    """

    student_layer: str | None = hyperparameter(None, help="the student's layer; by default its embedding")
    teacher_layer: str | None = hyperparameter(None, help="the teacher's layer; by default its embedding")

    def relations(self) -> Mapping[str, tuple[float, Relation]]:
        """{name of the term: (its weight, the function that computes it)}."""
        raise NotImplementedError

    @property
    def active(self) -> bool:
        """Whether any relation has a weight; if none has, the method needs no teacher."""
        return any(weight for weight, _ in self.relations().values())

    @property
    def needs_whole_batch(self) -> bool:
        """True while the method is active, since it relates the samples of a batch to each other."""
        return self.active

    def default_layer(self, architecture: Architecture) -> str | None:
        """The layer that is read if none is named; None if the network has no suitable one."""
        return architecture.pooled if architecture.pooled in architecture.shapes else None

    def layer(self, architecture: Architecture, *, whose: Literal["student", "teacher"]) -> str:
        """The layer that the method reads.

        Raises:
            MethodError: the named layer does not exist, or the teacher has no default layer.
            Unsuitable: the student has no default layer.
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
            raise kind(f"needs a layer before the classifier, {whose} {architecture.name} has none; set {whose}_layer")
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
