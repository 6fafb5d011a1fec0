"""Learning rates as pure functions of the step: nothing to store, nothing to restore."""

import bisect
import math

from stillhouse.spec.training import Training

_ONE_CYCLE_RISE = 0.3
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = 1 / 25e4


def learning_rate(training: Training, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The rate of step `step` (from 0) of a stage of `total_steps`.

    - `cosine`: peak·(1 + cos πx)/2 over the steps after the warm-up (arXiv 1608.03983, one cycle).
    - `one_cycle`: rises from peak/25 over the first 30 %, then falls to peak/250000, both by a cosine (arXiv 1708.07120
      with the usual cosine form); it includes its own warm-up.
    - `step`: times `gamma` after each milestone, a fraction of the stage.
    """
    peak = training.peak_learning_rate
    progress = step / total_steps
    if training.schedule == "one_cycle":
        if progress < _ONE_CYCLE_RISE:
            return _cosine(peak * _ONE_CYCLE_START, peak, progress / _ONE_CYCLE_RISE)
        return _cosine(peak, peak * _ONE_CYCLE_END, (progress - _ONE_CYCLE_RISE) / (1 - _ONE_CYCLE_RISE))
    warmup_steps = min(round(training.warmup_epochs * steps_per_epoch), total_steps - 1)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if training.schedule == "step":
        return peak * training.gamma ** bisect.bisect_right(sorted(training.milestones), progress)
    if training.schedule == "cosine":
        return _cosine(peak, 0.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return peak


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


def risen(progress: float, fraction: float) -> float:
    """How far a weight has risen linearly from 0 to 1, over the first `fraction` of a training; 1 where that is 0.

    Args:
        progress: of the training, in [0, 1).
    """
    return min(progress / fraction, 1.0) if fraction else 1.0
