"""The networks of a trial: its students and the helpers of its method, each with weights that depend on the seed alone."""

import weakref
from collections.abc import Callable

import torch
from torch import nn

from stillhouse.data.hashing import derive_seed
from stillhouse.distill.ddp import Workers, share_statistics
from stillhouse.distill.hook_returns import helpers_of
from stillhouse.distill.method import Helper, Method, Setup
from stillhouse.tasks import Task


class StudentFactory:
    """Builds the students of a trial; the n-th one has the same weights in every run.

    Args:
        build: builds an untrained student; called under the trial's seed.
    """

    def __init__(self, build: Callable[[], nn.Module], *, seed: int, device: str, memory_format: torch.memory_format) -> None:
        self._build = build
        self._seed = seed
        self._device = device
        self._memory_format = memory_format
        self.num_built = 0
        self._built: list[weakref.ref[nn.Module]] = []

    @property
    def built(self) -> list[nn.Module]:
        """The students that still exist, in the order in which they were made."""
        return [student for each in self._built if (student := each()) is not None]

    def __call__(self) -> nn.Module:
        """The next student."""
        with torch.random.fork_rng(devices=rng_devices(self._device)):
            torch.manual_seed(derive_seed(self._seed, "student", self.num_built))
            built = self._build()
        self.num_built += 1
        student: nn.Module = built.to(self._device, memory_format=self._memory_format)  # type: ignore[call-overload]
        self._built.append(weakref.ref(student))
        return student


def make_helpers(
    method: Method,
    task: Task,
    setup: Setup,
    *,
    seed: int,
    device: str,
    workers: Workers,
    memory_format: torch.memory_format = torch.contiguous_format,
    sync_batchnorm: bool = False,
) -> dict[str, Helper]:
    """The helpers of the method and of its task on the device, by name; only trainable ones require gradients.

    Args:
        memory_format: of the student's images and maps; helpers on a GPU have it too, so that maps need not be converted. On a
            CPU they keep PyTorch's format, in which earlier versions trained them.
        sync_batchnorm: whether BatchNorm of several workers is PyTorch's.
    """
    with torch.random.fork_rng(devices=rng_devices(device)):
        torch.manual_seed(derive_seed(seed, "helpers"))
        helpers = helpers_of(method, setup)
        if method.uses_supervised_loss:
            torch.manual_seed(derive_seed(seed, "helpers of the task"))
            of_task = task.helpers(setup.student.num_classes, setup.student.input_shape)
            assert not helpers.keys() & of_task.keys(), f"method and task both name a helper {', '.join(of_task)}"
            helpers |= {name: Helper(module=module) for name, module in of_task.items()}
    for helper in helpers.values():
        helper.module.to(device)
        if torch.device(device).type != "cpu":
            helper.module.to(memory_format=memory_format)
        helper.module.requires_grad_(helper.trainable)
        share_statistics(helper.module, workers, by_torch=sync_batchnorm)
    return helpers


def rng_devices(device: str) -> list[torch.device]:
    """The devices whose random generator is saved and restored besides that of the CPU."""
    where = torch.device(device)
    return [where] if where.type == "cuda" else []
