"""Numbers in a module's state that a step reads without waiting for the device."""

import copy

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stillhouse.distill.counters import Counters


class Counted(Counters):
    def __init__(self, value: int = -1) -> None:
        super().__init__()
        self.register_count("first", value)


class NoReading(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number was read off the device"
        return func(*args, **(kwargs or {}))


def test_a_number_is_known_without_reading_its_buffer() -> None:
    counted = Counted()
    with NoReading():  # type: ignore[no-untyped-call]
        assert counted.count("first") == -1
        counted.set_count("first", 3)
        assert counted.count("first") == 3


def test_a_number_is_in_the_state_and_comes_back_with_it() -> None:
    saved = Counted()
    saved.set_count("first", 7)
    assert {name: int(value) for name, value in saved.state_dict().items()} == {"first": 7}
    loaded = torch.nn.ModuleList([Counted(2)])
    loaded.load_state_dict({"0.first": saved.state_dict()["first"]})
    (module,) = loaded
    assert isinstance(module, Counted)
    assert module.count("first") == 7


def test_a_copy_counts_for_itself() -> None:
    one = Counted()
    other = copy.deepcopy(one)
    other.set_count("first", 5)
    other.load_state_dict(one.state_dict())
    assert (one.count("first"), other.count("first")) == (-1, -1)
    other.set_count("first", 6)
    assert one.count("first") == -1
