"""DOT: A Distillation-Oriented Trainer (Zhao, Cui, Song, Liang 2023, arXiv 2307.08436).

    v_task <- (m - delta) v_task + g_task + decay p         g_task: the gradient of the labels' term
    v_kd   <- (m + delta) v_kd + g_kd                       g_kd: that of all other terms
    p <- p - rate (v_task + v_kd)

Any method is trained as it is, but the gradients of its distillation terms have a larger momentum than those of the
cross-entropy, so that the distillation loss leads. m is the recipe's momentum; with delta 0 a step is one of plain SGD.

Methods:
      distillation_oriented: {method: decoupled, momentum_shift: 0.05}

A weight that only one of the two losses reaches (such as a helper's) has the momentum m, as in the authors' code. Gradients are
clipped by the norm of their sum. In a stage whose loss has only one of the two, the step is a plain one.

It needs SGD with m - delta >= 0 and m + delta < 1; other trials are passed over. Two backward passes need whole batches:
neither micro-batches nor several workers.

Deviations: Nesterov's form of momentum, if the recipe has it, is used for both; the authors' code has none.

A step costs 1.4 times one of `kd` (resnet8 taught by resnet20, digits, one thread): the backward pass runs twice.

The paper itself was not available. Verified against the formulas of the authors' code by hand, and against plain SGD at
delta 0.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from stillhouse.distill.method import DEFAULT_TASK, Card, Step, Update, hyperparameter, sum_of_terms
from stillhouse.methods._other_methods import WrappingMethod
from stillhouse.spec.priors import Uniform
from stillhouse.spec.training import Training

_LABELS_TERM = "cross_entropy"


@dataclass(frozen=True, kw_only=True)
class DOT(WrappingMethod):
    """A method whose distillation terms have a larger momentum than its cross-entropy."""

    card: ClassVar[Card] = Card(
        title="DOT: A Distillation-Oriented Trainer",
        arxiv="2307.08436",
        family="L",
        equations="SGD with momentum m + delta for the distillation loss and m - delta for the labels",
        deviations="with Nesterov's momentum if the recipe has it",
        suggested="momentum_shift 0.075 at momentum 0.9 with kd (authors' code, CIFAR-100)",
        interactions="needs training.optimizer sgd (not the default), whole batches and no float16; two backward passes",
    )

    method: str = hyperparameter("kd", help="name of the method that is trained")
    momentum_shift: float = hyperparameter(
        0.075, minimum=0, below=1, prior=Uniform(0.02, 0.09), help="delta, added to and taken from the recipe's momentum"
    )

    def serves(self, task: str) -> bool:
        return task == DEFAULT_TASK and super().serves(task)

    def recipe_problem(self, training: Training) -> str | None:
        """As in the base class: it needs SGD whose momentum can be shifted, without scaled gradients."""
        if training.optimizer != "sgd":
            return f"needs training.optimizer sgd, whose momentum it splits, got {training.optimizer}"
        if training.mixed_precision == "float16":
            return "needs training.mixed_precision off or bfloat16, got float16"
        low, high = training.momentum - self.momentum_shift, training.momentum + self.momentum_shift
        if low < 0 or high >= 1:
            return (
                f"needs training.momentum of at least {self.momentum_shift:g} and below {1 - self.momentum_shift:g} with "
                f"momentum_shift {self.momentum_shift:g}, got {training.momentum:g}"
            )
        return None

    def step(self, step: Step, update: Update) -> dict[str, Tensor]:
        terms = self.loss(step)
        distillation = {name: term for name, term in terms.items() if name != _LABELS_TERM}
        if _LABELS_TERM not in terms or not distillation:
            update.minimise(sum_of_terms(terms))
            return terms
        losses = {"task": terms[_LABELS_TERM], "distillation": sum_of_terms(distillation)}
        update.minimise_separately(losses, {"task": -self.momentum_shift, "distillation": self.momentum_shift})
        return terms
