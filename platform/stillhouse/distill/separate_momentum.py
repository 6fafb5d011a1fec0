"""One step of SGD along several losses, each with momentum of its own."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Gradients = Sequence[Tensor | None]
"""One entry per parameter of a group; None where a loss does not reach the parameter."""


def separate_gradients(losses: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, Gradients]:
    """The gradients of each scalar loss with respect to all parameters, by the loss's name."""
    names = list(losses)
    return {
        name: torch.autograd.grad(losses[name], parameters, retain_graph=name != names[-1], allow_unused=True) for name in names
    }


def summed(gradients: Mapping[str, Gradients]) -> list[Tensor | None]:
    """The gradient of the sum of all losses for each parameter; None where no loss reaches it."""
    totals: list[Tensor | None] = []
    for of_losses in zip(*gradients.values(), strict=True):
        reaching = [gradient for gradient in of_losses if gradient is not None]
        totals.append(torch.stack(reaching).sum(dim=0) if len(reaching) > 1 else (reaching[0] if reaching else None))
    return totals


@torch.no_grad()
def step_separately(
    optimizer: torch.optim.SGD, gradients: Mapping[str, Gradients], shifts: Mapping[str, float], scale: Tensor | None = None
) -> None:
    """For each loss i: v_i <- (m + shift_i) v_i + g_i, then p <- p - rate sum_i v_i, or Nesterov's form of this.

    Weight decay is added to the gradient of the first loss that reaches a parameter. A parameter that only one loss reaches
    has the momentum m. Shifts of 0 give the step of plain SGD on the sum of the losses, up to rounding. The velocities v_i are
    in the optimiser's state, and so in its checkpoints. Nothing waits for a GPU.

    Args:
        optimizer: with one group of parameters, in whose order the gradients are.
        gradients: of each loss, by its name.
        shifts: of the momentum, by the loss's name.
        scale: multiplies all gradients, as clipping does.
    """
    (group,) = optimizer.param_groups
    parameters, rate = group["params"], group["lr"]
    scaled = {name: _times(each, scale) for name, each in gradients.items()}
    reaching = [[name for name, each in scaled.items() if each[place] is not None] for place in range(len(parameters))]
    for name, each in scaled.items():
        _decay(each, parameters, [place for place, names in enumerate(reaching) if names[:1] == [name]], group["weight_decay"])
        for alone in (False, True):
            chosen = [place for place, names in enumerate(reaching) if name in names and (len(names) == 1) == alone]
            if not chosen:
                continue
            momentum = group["momentum"] + (0.0 if alone else shifts[name])
            steps = [gradient for place in chosen if (gradient := each[place]) is not None]
            velocities = [_velocity(optimizer, parameters[place], name) for place in chosen]
            torch._foreach_mul_(velocities, momentum)
            torch._foreach_add_(velocities, steps)
            moves = torch._foreach_add(steps, velocities, alpha=momentum) if group["nesterov"] else velocities
            torch._foreach_add_([parameters[place] for place in chosen], moves, alpha=-rate)


def _times(gradients: Gradients, scale: Tensor | None) -> list[Tensor | None]:
    return [gradient if gradient is None or scale is None else gradient * scale for gradient in gradients]


def _decay(gradients: list[Tensor | None], parameters: Sequence[Tensor], places: Sequence[int], decay: float) -> None:
    """Adds the weight decay to the gradients at these places."""
    for place in places if decay else ():
        gradient = gradients[place]
        assert gradient is not None
        gradients[place] = gradient.add(parameters[place], alpha=decay)


def _velocity(optimizer: torch.optim.SGD, parameter: Tensor, name: str) -> Tensor:
    state = optimizer.state[parameter]
    key = f"momentum of {name}"
    if key not in state:
        state[key] = torch.zeros_like(parameter)
    velocity: Tensor = state[key]
    return velocity
