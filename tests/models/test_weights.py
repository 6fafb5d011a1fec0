"""Weights on disk: round trips, checkpoints of other programs, hashes, and files that are no checkpoints."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from stillhouse.errors import UsageError
from stillhouse.models.checkpoint_files import read_checkpoint
from stillhouse.models.registry import build_model
from stillhouse.models.weights import load_weights, read_metadata, save_weights, weights_hash


def make_net(seed: int = 0, *, num_classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("resnet8", num_classes=num_classes, input_shape=(1, 8, 8), width=0.25)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_weights_survive_the_round_trip_bit_for_bit(tmp_path: Path) -> None:
    net, other = make_net(0), make_net(1)
    digest = save_weights(net, tmp_path / "w.safetensors", {"model": "resnet8"})
    load_weights(other, tmp_path / "w.safetensors")
    assert same(net, other)
    assert digest == weights_hash(net) == weights_hash(other)
    assert read_metadata(tmp_path / "w.safetensors") == {"model": "resnet8"}
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_channels_last_weights_are_the_same_weights(tmp_path: Path) -> None:
    net, other = make_net(), make_net(1).to(memory_format=torch.channels_last)
    before = weights_hash(net)
    net.to(memory_format=torch.channels_last)
    assert save_weights(net, tmp_path / "w.safetensors", {}) == before
    load_weights(other, tmp_path / "w.safetensors")
    assert same(net, other)
    assert other.layer3[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index,union-attr]


def test_tied_weights_are_stored(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    save_weights(net, tmp_path / "w.safetensors", {})
    stored = read_checkpoint(tmp_path / "w.safetensors")
    assert torch.equal(stored["1.weight"], net.state_dict()["0.weight"])


def test_a_compiled_models_weights_have_the_names_and_the_hash_of_the_model(tmp_path: Path) -> None:
    net = make_net()
    compiled = torch.compile(net, backend="eager")
    assert isinstance(compiled, nn.Module)
    assert save_weights(compiled, tmp_path / "w.safetensors", {}) == weights_hash(net)
    load_weights(make_net(1), tmp_path / "w.safetensors")
    load_weights(compiled, tmp_path / "w.safetensors")


@pytest.mark.parametrize("change", ["value", "name", "dtype", "shape"])
def test_the_hash_depends_on_names_dtypes_shapes_and_bytes(change: str) -> None:
    net, other = nn.Module(), nn.Module()
    net.register_buffer("a", torch.zeros(2, 3))
    value = {"value": torch.tensor([[0.0, 0, 0], [0, 0, 1]]), "dtype": torch.zeros(2, 3, dtype=torch.int32)}.get(change)
    value = torch.zeros(3, 2) if change == "shape" else torch.zeros(2, 3) if value is None else value
    other.register_buffer("b" if change == "name" else "a", value)
    assert weights_hash(net) != weights_hash(other)


def as_is(state: dict[str, Tensor]) -> Any:
    return state


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


WRAPPINGS: dict[str, Any] = {
    "plain": as_is,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best": torch.tensor(0.7)},
    "model": lambda state: {"epoch": 3, "model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "net": lambda state: {"net": state, "acc": np.float64(0.5)},
    "model_state_dict": lambda state: {"model_state_dict": state, "losses": [1.0, 2.0], "note": "fine"},
    "nested": lambda state: {"state_dict": {"model": state}},
    "parallel": lambda state: {"state_dict": prefixed(state, "module.")},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "both": lambda state: prefixed(state, "_orig_mod.module."),
    "both the other way": lambda state: prefixed(state, "module._orig_mod."),
    "arguments": lambda state: {"opt": argparse.Namespace(lr=0.1), "model": state},
    "extra values": lambda state: {**state, "epoch": 3, "names": ["a"]},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("legacy", [False, True])
def test_wrapped_checkpoints_are_unwrapped(wrapping: str, legacy: bool, tmp_path: Path) -> None:
    net, other = make_net(0), make_net(1)
    path = tmp_path / "checkpoint.pth"
    torch.save(WRAPPINGS[wrapping](dict(net.state_dict())), path, _use_new_zipfile_serialization=not legacy)
    load_weights(other, path)
    assert same(net, other)


def test_prefixes_are_removed_from_safetensors_too(tmp_path: Path) -> None:
    net, other = make_net(0), make_net(1)
    safetensors.torch.save_file(prefixed(dict(net.state_dict()), "module."), tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert same(net, other)


def test_a_model_whose_only_child_is_called_module_keeps_it(tmp_path: Path) -> None:
    net, other = nn.Module(), nn.Module()
    net.add_module("module", nn.Linear(2, 2))
    other.add_module("module", nn.Linear(2, 2))
    save_weights(net, tmp_path / "w.safetensors", {})
    load_weights(other, tmp_path / "w.safetensors")
    assert same(net, other)


def test_old_checkpoints_without_batch_counters_load(tmp_path: Path) -> None:
    net = make_net()
    state = {name: value for name, value in net.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pth")
    load_weights(make_net(1), tmp_path / "old.pth")


def refused(path: Path, net: nn.Module | None = None) -> str:
    """The error's text; `net` must be as it was."""
    net = net or make_net(7)
    before = weights_hash(net)
    with pytest.raises(UsageError) as error:
        load_weights(net, path)
    assert weights_hash(net) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_weight_is_reported(tmp_path: Path) -> None:
    state = dict(make_net().state_dict())
    del state["fc.bias"], state["fc.weight"]
    torch.save(state, tmp_path / "w.pth")
    assert "w.pth lacks 'fc.weight', 'fc.bias' of the model;" in refused(tmp_path / "w.pth")


def test_an_unexpected_weight_is_reported(tmp_path: Path) -> None:
    torch.save({**make_net().state_dict(), "head.weight": torch.zeros(2)}, tmp_path / "w.pth")
    assert "w.pth has 'head.weight', which the model lacks; is it another architecture? rename: {'^head\\b': null}" in refused(
        tmp_path / "w.pth"
    )


def test_a_weight_of_another_shape_is_reported(tmp_path: Path) -> None:
    save_weights(make_net(num_classes=5), tmp_path / "w.safetensors", {})
    assert "'fc.weight' is [5, 16] in" in refused(tmp_path / "w.safetensors")


def test_a_weight_of_another_type_is_reported(tmp_path: Path) -> None:
    state = dict(make_net().state_dict())
    state["fc.bias"] = torch.zeros(3, dtype=torch.int64)
    torch.save(state, tmp_path / "w.pth")
    assert "'fc.bias' is torch.int64 in" in refused(tmp_path / "w.pth")


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("code ran",)


@pytest.mark.parametrize("content", [Evil(), {"model": {"a": torch.zeros(1)}, "x": Evil()}, nn.Linear(2, 2)])
def test_a_pickle_with_code_is_refused(content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(content, tmp_path / "evil.pth")
    assert "would run code" in refused(tmp_path / "evil.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(content))
    refused(tmp_path / "plain.pkl")
    assert capsys.readouterr().out == ""


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.pth")
    assert "directory" in refused(tmp_path)
    for name, content in {
        "empty": b"",
        "text": b"hello, this is no checkpoint",
        "zip": b"PK\x03\x04rubbish",
        "zeros": bytes(64),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert "damaged" in refused(tmp_path / name)
    torch.save({"epoch": 3, "lists": [torch.zeros(1)]}, tmp_path / "nothing.pth")
    assert "has no weights" in refused(tmp_path / "nothing.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "has no weights" in refused(tmp_path / "list.pth")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_truncated_files_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("pth"):
        torch.save(make_net().state_dict(), path)
    else:
        save_weights(make_net(), path, {})
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 40, 9):
        path.write_bytes(whole[:length])
        assert "damaged" in refused(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    digest = save_weights(make_net(0), path, {})

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_weights(make_net(1), path, {})
    net = make_net(2)
    load_weights(net, path)
    assert weights_hash(net) == digest
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
