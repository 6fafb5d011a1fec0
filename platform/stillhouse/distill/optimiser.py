"""Optimisers of the student and of a method's helpers, one for each, so that a method may step them separately."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.distill.schedule import learning_rate
from stillhouse.distill.separate_momentum import separate_gradients, step_separately, summed
from stillhouse.spec.training import Training

_BETA2 = 0.999
"""PyTorch's own."""


def make_optimizer(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimiser that `training` names over all parameters of `module` that require gradients."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    fused = fuses(parameters)
    rate, decay = training.peak_learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=rate,
            momentum=training.momentum,
            weight_decay=decay,
            nesterov=training.nesterov and training.momentum > 0,
            fused=fused,
        )
    betas = training.adam_beta1, _BETA2
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, betas=betas, weight_decay=decay, fused=fused)
    return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=decay, fused=fused)


def fuses(parameters: Iterable[Tensor]) -> bool | None:
    """Whether one kernel steps all weights: on a GPU. None leaves PyTorch's default, as before, on a CPU.

    It takes fewer launches, and in float16 the scaler need not wait for the GPU to learn whether a gradient is infinite.
    """
    return True if all(parameter.is_cuda for parameter in parameters) else None


class Optimisers:
    """The trainable groups of one stage: `student` and the helpers by name. Implements the contract's `Update`.

    Args:
        modules: trainable modules by group name; a module without trainable parameters is left out.
        training: the recipe of each group.
        total_steps: length of the stage.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        training: Mapping[str, Training],
        *,
        steps_per_epoch: int,
        total_steps: int,
        device: str,
    ) -> None:
        self._training = training
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps
        self._groups = {
            name: make_optimizer(module, training[name])
            for name, module in modules.items()
            if any(parameter.requires_grad for parameter in module.parameters())
        }
        scaled = any(recipe.mixed_precision == "float16" for recipe in training.values())
        self._scaler = torch.amp.GradScaler(torch.device(device).type, enabled=scaled)

    def set_step(self, step: int) -> float:
        """Sets every group's learning rate for step `step` of the stage; returns the student's."""
        student_rate = 0.0
        for name, optimizer in self._groups.items():
            rate = learning_rate(self._training[name], step, self._steps_per_epoch, self._total_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if name == "student":
                student_rate = rate
        return student_rate

    def minimise(self, loss: Tensor, *groups: str) -> None:
        """One optimiser step on `loss` for the named groups, by default all; a group without gradients stays unchanged."""
        self.clear(*groups)
        self.accumulate(loss)
        self.apply(*groups)

    def minimise_separately(self, losses: Mapping[str, Tensor], momentum_shifts: Mapping[str, float]) -> None:
        """One step of all groups on the sum of the losses, each with momentum of its own; see `step_separately`.

        Gradients are clipped by the norm of their sum. A group whose optimiser is not SGD takes its usual step on the sum.
        """
        assert not self._scaler.is_enabled(), "separate momentum has no scaled gradients"
        groups = {name: [p for group in each.param_groups for p in group["params"]] for name, each in self._groups.items()}
        gradients = separate_gradients(losses, [parameter for parameters in groups.values() for parameter in parameters])
        first = 0
        for name, parameters in groups.items():
            own = {loss: each[first : first + len(parameters)] for loss, each in gradients.items()}
            first += len(parameters)
            totals = summed(own)
            for parameter, total in zip(parameters, totals, strict=True):
                parameter.grad = total
            optimizer, clip = self._groups[name], self._training[name].gradient_clip
            if not isinstance(optimizer, torch.optim.SGD):
                self.apply(name)
                continue
            scale = None
            if clip is not None:
                norm = nn.utils.get_total_norm([total for total in totals if total is not None])
                scale = (clip / (norm + 1e-6)).clamp(max=1.0)  # as in torch's clip_grad_norm_
            step_separately(optimizer, own, momentum_shifts, scale)

    def clear(self, *groups: str) -> None:
        """Drops the gradients of the named groups, by default of all."""
        for optimizer in self._chosen(groups).values():
            optimizer.zero_grad(set_to_none=True)

    def accumulate(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`."""
        self._scaler.scale(loss).backward()

    def apply(self, *groups: str) -> None:
        """One optimiser step along the gradients that were added since `clear`."""
        for name, optimizer in self._chosen(groups).items():
            if all(p.grad is None for group in optimizer.param_groups for p in group["params"]):
                continue  # the scaler raises for a group without gradients
            clip = self._training[name].gradient_clip
            if clip is not None:
                self._scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
            self._scaler.step(optimizer)
        self._scaler.update()

    def _chosen(self, groups: tuple[str, ...]) -> dict[str, torch.optim.Optimizer]:
        return {name: self._groups[name] for name in groups} if groups else self._groups

    def state_dict(self) -> dict[str, Any]:
        return {
            "groups": {name: group.state_dict() for name, group in self._groups.items()},
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, group in self._groups.items():
            saved = state["groups"][name]
            # How the weights are stepped is this process's choice, and decides where Adam's counters are.
            ways = [{"fused": ours.get("fused"), "foreach": ours.get("foreach")} for ours in group.param_groups]
            groups = [{**theirs, **way} for theirs, way in zip(saved["param_groups"], ways, strict=True)]
            group.load_state_dict({**saved, "param_groups": groups})
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
