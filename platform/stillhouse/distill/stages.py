"""Stages of a training: how methods divide its epochs, and whether their stages are sound."""

from collections.abc import Sequence

from stillhouse.distill.hook_returns import knowledge_of, stages_of
from stillhouse.distill.method import Method, MethodError, Setup, Stage
from stillhouse.errors import did_you_mean
from stillhouse.spec.training import Training


def epochs_of_first_stage(epochs: int, share: float) -> int:
    """How many of `epochs` the first of two stages takes: the share, but at least one for each stage.

    Raises:
        MethodError: there is only one epoch.
    """
    if epochs < 2:
        raise MethodError(f"needs an epoch for each of its 2 stages, has {epochs}")
    return min(max(round(share * epochs), 1), epochs - 1)


def generations(epochs: int, number: int) -> list[Stage]:
    """`generation_1` and so on with equal shares of the epochs; the last gets the remainder, and only it is comparable.

    The first generation needs all the method's knowledge, the later ones none.

    Raises:
        MethodError: there are fewer epochs than generations.
    """
    if epochs < number:
        raise MethodError(f"needs at least one epoch for each of its {number} generations, has {epochs}")
    share, rest = divmod(epochs, number)
    return [
        Stage(
            name=f"generation_{each}",
            epochs=share + (rest if each == number else 0),
            comparable=each == number,
            knowledge=None if each == 1 else (),
        )
        for each in range(1, number + 1)
    ]


def training_of(stage: Stage, training: Training) -> Training:
    """A recipe as the stage uses it: with its rate factor, and the smaller of both bounds of the gradients."""
    changed: dict[str, float] = {}
    if stage.rate_factor != 1:
        changed["learning_rate"] = stage.rate_factor * training.peak_learning_rate
    bounds = [bound for bound in (stage.gradient_clip, training.gradient_clip) if bound is not None]
    if bounds:
        changed["gradient_clip"] = min(bounds)
    return training.model_copy(update=changed)


def check_stages(method: Method, setup: Setup) -> Sequence[Stage]:
    """The method's stages, whose epochs must add up to the training's.

    Raises:
        ValueError: they do not, a stage has no epoch, its rate factor or bound of gradients is not positive, or it names
            knowledge that `knowledge` does not return.
    """
    stages = stages_of(method, setup)
    if any(stage.epochs < 1 for stage in stages):
        raise ValueError(f"needs at least one epoch for each of its {len(stages)} stages, has {setup.epochs} in all")
    total = sum(stage.epochs for stage in stages)
    if total != setup.epochs:
        raise ValueError(f"its stages must take {setup.epochs} epochs in all, they take {total}")
    if any(not stage.rate_factor > 0 or (stage.gradient_clip is not None and not stage.gradient_clip > 0) for stage in stages):
        raise ValueError("its stages need a rate_factor and a gradient_clip above 0")
    for stage in stages:
        if stage.steps_per_epoch is not None and (not stage.data_free or stage.steps_per_epoch < 1):
            raise ValueError(f"stage '{stage.name}' may have steps_per_epoch only if it is data_free, and then at least 1")
    needed = dict.fromkeys(name for stage in stages for name in stage.knowledge or ())
    if needed and setup.teacher is not None:
        known = knowledge_of(method, setup.teacher, setup.student)
        for name in needed:
            if name not in known:
                raise ValueError(f"a stage names knowledge '{name}', which the method does not need{did_you_mean(name, known)}")
    return stages
