"""Checkpoints as other programs write them, and files that must not be read: the weights of the model, or one sentence."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillhouse.errors import UsageError
from stillhouse.models.checkpoint_files import MAX_CHECKPOINT_BYTES, open_checkpoint
from stillhouse.models.registry import build_model
from stillhouse.models.weights import load_weights


def make_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("resnet8", num_classes=3, input_shape=(1, 8, 8), width=0.25)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def prefixed(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in model.state_dict().items()}


def refusal(path: str | Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_weights(make_net(0), path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.encoder.", "model._orig_mod.", "module.student.", "a.b.c.d."])
def test_a_prefix_that_all_names_share_is_ignored_whatever_it_is(prefix: str, tmp_path: Path) -> None:
    net, other = make_net(0), make_net(1)
    # As Lightning writes it: the module's attribute becomes the prefix, beside what else a run needs.
    torch.save({"state_dict": prefixed(net, prefix), "epoch": 4, "pytorch-lightning_version": "2.4.0"}, tmp_path / "last.ckpt")
    load_weights(other, tmp_path / "last.ckpt")
    assert same(net, other)


def test_a_model_that_wraps_another_one_takes_the_weights_of_the_inner_one(tmp_path: Path) -> None:
    inner, outer = make_net(0), nn.Module()
    outer.add_module("net", make_net(1))
    torch.save(inner.state_dict(), tmp_path / "inner.pth")
    load_weights(outer, tmp_path / "inner.pth")
    assert same(inner, outer.get_submodule("net"))


def test_names_with_different_prefixes_are_not_mixed(tmp_path: Path) -> None:
    torch.save(prefixed(make_net(0), "student.") | prefixed(make_net(1), "teacher."), tmp_path / "two.pth")
    assert r"rename: {'^student\.': '', '^teacher\b': null}" in refusal(tmp_path / "two.pth")


@pytest.mark.parametrize(
    ("first", "second"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("state_dict", "ema_state_dict")]
)
def test_weights_beside_the_weights_are_named_and_can_be_taken(first: str, second: str, tmp_path: Path) -> None:
    net, averaged, loaded = make_net(0), make_net(1), make_net(2)
    path = tmp_path / "both.pth"
    torch.save({first: net.state_dict(), second: prefixed(averaged, "module."), "optimizer": {"state": {}}}, path)
    checkpoint = open_checkpoint(path)
    note = checkpoint.note(str(path))
    assert (checkpoint.taken, checkpoint.others) == (first, (second,))
    assert note is not None
    assert f"those under {first} are taken" in note
    assert f"{path}#{second}" in note
    load_weights(loaded, path)
    assert same(net, loaded)
    load_weights(loaded, f"{path}#{second}")
    assert same(averaged, loaded)
    assert "did you mean" in refusal(f"{path}#{second[:-1]}")


def test_one_set_of_weights_needs_no_note(tmp_path: Path) -> None:
    torch.save({"state_dict": make_net(0).state_dict(), "optimizer": {"exp_avg": torch.zeros(3)}}, tmp_path / "one.pth")
    assert open_checkpoint(tmp_path / "one.pth").note("one.pth") is None


def test_weights_under_an_unknown_key_are_offered(tmp_path: Path) -> None:
    torch.save({"generator": make_net(0).state_dict()}, tmp_path / "odd.pth")
    assert f"write {tmp_path / 'odd.pth'}#generator" in refusal(tmp_path / "odd.pth")


def test_a_file_whose_name_contains_the_sign_is_read_as_it_is(tmp_path: Path) -> None:
    net, loaded = make_net(0), make_net(1)
    torch.save(net.state_dict(), tmp_path / "run#3.pth")
    load_weights(loaded, tmp_path / "run#3.pth")
    assert same(net, loaded)


def test_a_dictionary_that_contains_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "loop.pth")
    assert "has no weights" in refusal(tmp_path / "loop.pth")


def test_a_compressed_archive_of_zeros_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(4)}, tmp_path / "small.pth")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(tmp_path / "small.pth") as small, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in small.infolist():
            archive.writestr(part.filename, bytes(300_000_000) if "/data/" in part.filename else small.read(part))
    assert bomb.stat().st_size < 1_000_000
    message = refusal(bomb)
    assert "unpacks to 300,00" in message
    assert "torch.save" in message


def test_pipes_devices_loops_and_huge_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    assert "it is a pipe" in refusal(tmp_path / "pipe.pt")
    assert "it is a device" in refusal("/dev/zero")
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    assert "symbolic links" in refusal(tmp_path / "loop.pt")
    with (tmp_path / "huge.pt").open("wb") as file:
        file.truncate(MAX_CHECKPOINT_BYTES + 1)
    assert f"at most {MAX_CHECKPOINT_BYTES:,}" in refusal(tmp_path / "huge.pt")
