"""TinyBERT: Distilling BERT for Natural Language Understanding (Jiao et al. 2020, arXiv 1909.10351).

    L_embd = MSE(E_s W_e, E_t)                                      (equation 9)
    L_hidn = MSE(H_s W_h, H_t)                                      (equation 8)
    L_attn = 1/h sum_i MSE(A_s_i, A_t_i)                            (equation 7), A before the softmax
    L_pred = CE(softmax(z_t / T), log softmax(z_s / T))             (equation 10), T = 1

    stage "layers"       the sum of the first three: L_embd, and L_hidn + L_attn of each student layer m with the teacher's g(m)
    stage "prediction"   w L_pred + (1 - w) CE(y, softmax(z_s))

E are the embeddings, H the outputs of the layers and A the attentions of h heads; g(m) = m N / M rounded up, for M layers of
the student and N of the teacher (the paper's uniform strategy). W_h is shared by the layers. Places without a token do not
count: each error is the mean over a text's tokens, or pairs of tokens, and then over the batch.

Deviations: the paper precedes this by the same training on a large corpus, and trains 20 epochs of layers and 3 of prediction;
here each stage has half of the epochs by default. The labels, which the paper does not use, have a weight that is 0 by default.
Attentions are averaged over the heads if the networks have different numbers of them, and left out where a network has none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.distill.method import Card, Helper, Method, MethodError, Setup, Stage, Step, Unsuitable, hyperparameter
from stillhouse.distill.stages import epochs_of_first_stage
from stillhouse.knowledge.kinds import Knowledge, logits, reduced
from stillhouse.models.architecture import Architecture
from stillhouse.spec.priors import LogUniform, Uniform


def for_all_places(vectors: Tensor, *, length: int) -> Tensor:
    """[B, L, D] with zeros up to `length` places: batches of other lengths have rows of the same shape."""
    return F.pad(vectors, (0, 0, 0, length - vectors.shape[1]))


def for_all_pairs(scores: Tensor, *, length: int, average: bool) -> Tensor:
    """[B, h, L, L] with zeros up to `length` places; the mean over the heads, [B, 1, length, length], if `average`."""
    missing = length - scores.shape[-1]
    padded = F.pad(scores, (0, missing, 0, missing))
    return padded.mean(1, keepdim=True) if average else padded


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The mean squared difference over a text's tokens and their numbers, then over the batch.

    Args:
        student: [B, L, D], mapped to the teacher's D.
        teacher: [B, L, D].
        mask: bool [B, L], where there is a token; a text without any counts as 0.
    """
    return _masked_mean((student - teacher).square().mean(2), mask)


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The mean squared difference over a text's pairs of tokens and the heads, then over the batch.

    Args:
        student: [B, h, L, L], before the softmax.
        teacher: likewise.
        mask: as for `hidden_loss`.
    """
    pairs = mask.unsqueeze(2) & mask.unsqueeze(1)
    return _masked_mean((student - teacher).square().mean(1).flatten(1), pairs.flatten(1))


def _masked_mean(errors: Tensor, mask: Tensor) -> Tensor:
    """The mean over the places of each row, then over the rows, of [B, P]."""
    weights = mask.to(errors.dtype)
    return ((errors * weights).sum(1) / weights.sum(1).clamp(min=1)).mean()


def layer_pairs(student: Architecture, teacher: Architecture) -> list[tuple[int, int]]:
    """(m, g(m)) for m = 0..M: which of the teacher's `token_layers` each of the student's learns from; 0 is the embedding.

    Raises:
        Unsuitable: the student's layers do not return vectors of tokens.
        MethodError: the teacher's do not.
    """
    for network, whose, kind in ((student, "student", Unsuitable), (teacher, "teacher", MethodError)):
        if len(network.token_layers) < 2:
            raise kind(f"needs layers that return a vector for each token, {whose} {network.name} has none")
    last, of_teacher = len(student.token_layers) - 1, len(teacher.token_layers) - 1
    return [(place, -(-place * of_teacher // last)) for place in range(last + 1)]


@dataclass(frozen=True, kw_only=True)
class HiddenStates(Method):
    """The student learns the teacher's embeddings, layers and attentions, and then its outputs."""

    card: ClassVar[Card] = Card(
        title="TinyBERT: Distilling BERT for Natural Language Understanding",
        arxiv="1909.10351",
        family="F",
        equations="equations 7 to 10, layers mapped uniformly; the two stages of the task-specific distillation",
        deviations="no training on a large corpus before; half of the epochs for each stage; errors only where there are "
        "tokens; attentions averaged over heads if their numbers differ, left out where a network has none",
        suggested="all weights 1, temperature 1; layer_fraction 0.87 (20 of 23 epochs in the paper)",
        interactions="vectors of all tokens are large to cache",
    )
    tasks: ClassVar[tuple[str, ...]] = ("text_classification",)

    layer_fraction: float = hyperparameter(
        0.5, above=0, below=1, prior=Uniform(0.3, 0.9), help="share of the epochs in which layers are learned"
    )
    hidden_weight: float = hyperparameter(
        1.0, minimum=0, prior=LogUniform(0.1, 10), help="weight of the embeddings' and the layers' errors"
    )
    attention_weight: float = hyperparameter(1.0, minimum=0, prior=LogUniform(0.1, 10), help="weight of the attentions' errors")
    temperature: float = hyperparameter(1.0, above=0, help="T, softens both outputs in the second stage")
    kd_weight: float = hyperparameter(
        1.0, minimum=0, maximum=1, help="w, weight of the teacher's outputs in the second stage; the labels have 1 - w"
    )

    @property
    def _reads_layers(self) -> bool:
        return self.hidden_weight > 0 or self.attention_weight > 0

    def knowledge(self, teacher: Architecture, student: Architecture) -> dict[str, Knowledge]:
        needed: dict[str, Knowledge] = {"logits": logits()} if self.kd_weight else {}
        if self._reads_layers:
            for place, learned in layer_pairs(student, teacher):
                layer = teacher.token_layers[learned]
                if self.hidden_weight:
                    needed[f"hidden{place}"] = reduced(for_all_places, layer, length=teacher.shape(layer)[0])
        for place, (ours, theirs) in self._attentions(student, teacher).items():
            heads, length, _ = teacher.shape(theirs)
            average = heads != student.shape(ours)[0]
            needed[f"attention{place}"] = reduced(for_all_pairs, theirs, length=length, average=average)
        return needed

    def _attentions(self, student: Architecture, teacher: Architecture) -> dict[int, tuple[str, str]]:
        """By m: the student's attention and the teacher's that it learns; empty where a network has none."""
        if not (self.attention_weight and student.attention_layers and teacher.attention_layers):
            return {}
        return {
            place: (student.attention_layers[place - 1], teacher.attention_layers[learned - 1])
            for place, learned in layer_pairs(student, teacher)
            if place
        }

    def student_layers(self, teacher: Architecture | None, student: Architecture) -> Sequence[str]:
        if not self._reads_layers:
            return ()
        assert teacher is not None, "layers are learned from a teacher"
        vectors = student.token_layers if self.hidden_weight else student.token_layers[-1:]
        return [*vectors, *(ours for ours, _ in self._attentions(student, teacher).values())]

    def stages(self, setup: Setup) -> Sequence[Stage]:
        prediction = ("logits",) if self.kd_weight else ()
        if not self._reads_layers:
            return (Stage(name="prediction", epochs=setup.epochs, knowledge=prediction),)
        assert setup.teacher is not None, "layers are learned from a teacher"
        epochs = epochs_of_first_stage(setup.epochs, self.layer_fraction)
        needed = self.knowledge(setup.teacher, setup.student)
        return (
            Stage(
                name="layers",
                epochs=epochs,
                until=setup.student.token_layers[-1],
                comparable=False,
                knowledge=tuple(name for name in needed if name != "logits"),
            ),
            Stage(name="prediction", epochs=setup.epochs - epochs, knowledge=prediction),
        )

    def modules(self, setup: Setup) -> Mapping[str, Helper]:
        if not self.hidden_weight:
            return {}
        assert setup.teacher is not None, "layers are learned from a teacher"
        pairs = layer_pairs(setup.student, setup.teacher)
        sizes = [
            (
                setup.student.shape(setup.student.token_layers[ours])[1],
                setup.teacher.shape(setup.teacher.token_layers[theirs])[1],
            )
            for ours, theirs in pairs
        ]
        shared = set(sizes[1:])
        if len(shared) > 1:
            raise Unsuitable(f"needs layers of one width, those of {setup.student.name} and its teacher have {sorted(shared)}")
        return {
            "embedding": Helper(module=nn.Linear(*sizes[0], bias=False)),
            "hidden": Helper(module=nn.Linear(*sizes[1], bias=False)),
        }

    def loss(self, step: Step) -> dict[str, Tensor]:
        return self._layers(step) if step.stage.name == "layers" else self._prediction(step)

    def _layers(self, step: Step) -> dict[str, Tensor]:
        mask = step.images != 0
        length = mask.shape[1]
        # In the order in which the layers run: vectors have three dimensions, attentions four.
        outputs = list(step.student_features.values())
        vectors = [each for each in outputs if each.ndim == 3] if self.hidden_weight else []
        scores = [each for each in outputs if each.ndim == 4]
        errors: dict[str, list[Tensor]] = {}
        for place, ours in enumerate(vectors):
            which = "hidden" if place else "embedding"
            taught = step.teacher[f"hidden{place}"][:, :length]
            errors.setdefault(which, []).append(hidden_loss(step.modules[which](ours), taught, mask))
        for place, ours in enumerate(scores, start=1):
            taught = step.teacher[f"attention{place}"][..., :length, :length]
            compared = ours if taught.shape[1] == ours.shape[1] else ours.mean(1, keepdim=True)
            errors.setdefault("attention", []).append(attention_loss(compared, taught, mask))
        weights = {"embedding": self.hidden_weight, "hidden": self.hidden_weight, "attention": self.attention_weight}
        return {name: weights[name] * torch.stack(found).sum() for name, found in errors.items()}

    def _prediction(self, step: Step) -> dict[str, Tensor]:
        if not self.kd_weight:
            return {"cross_entropy": step.supervised()}
        taught = F.softmax(step.teacher["logits"] / self.temperature, dim=1)
        soft = self.kd_weight * F.cross_entropy(step.logits / self.temperature, taught)
        if self.kd_weight == 1:
            return {"soft_cross_entropy": soft}
        return {"soft_cross_entropy": soft, "cross_entropy": (1 - self.kd_weight) * step.supervised()}
