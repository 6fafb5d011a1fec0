"""Knowledge: what is computed, and when two kinds are the same."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillhouse.knowledge import Knowledge, feature, input_gradient, logits, output, reduced


def energy(output: Tensor, *, power: int = 2) -> Tensor:
    """Sum over channels of |output|^power, [B, H, W]."""
    return output.abs().pow(power).sum(1)


def difference(first: Tensor, second: Tensor) -> Tensor:
    return first - second


LOGITS = torch.tensor([[1.0, -1.0], [0.0, 2.0]])
FEATURES = {"layer1": torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]), "layer2": torch.ones(1, 2, 1, 2)}


def test_logits_are_returned_unchanged() -> None:
    assert torch.equal(logits().compute(LOGITS, {}), LOGITS)


def test_a_feature_is_the_output_of_its_layer() -> None:
    assert torch.equal(feature("layer1").compute(LOGITS, FEATURES), FEATURES["layer1"])


def test_a_reduction_gets_the_layers_in_order_and_its_options() -> None:
    # |1|^3 + |3|^3 = 28 and |2|^3 + |4|^3 = 72.
    assert reduced(energy, "layer1", power=3).compute(LOGITS, FEATURES).tolist() == [[[28.0, 72.0]]]
    assert reduced(difference, "layer1", "layer2").compute(LOGITS, FEATURES)[0, 0, 0].tolist() == [0.0, 1.0]


def test_a_reduction_without_layers_reads_the_logits() -> None:
    assert reduced(torch.square).compute(LOGITS, {}).tolist() == [[1.0, 1.0], [0.0, 4.0]]


def test_identities_are_equal_if_and_only_if_kinds_are() -> None:
    kinds = [
        logits(),
        feature("layer1"),
        feature("layer2"),
        reduced(energy, "layer1"),
        reduced(energy, "layer1", power=1),
        reduced(energy, "layer2"),
        reduced(difference, "layer1", "layer2"),
        reduced(difference, "layer2", "layer1"),
        reduced(energy),
        input_gradient(),
        input_gradient(energy),
        input_gradient(energy, power=1),
    ]
    texts = {json.dumps(kind.identity(), sort_keys=True) for kind in kinds}
    assert len(texts) == len(kinds)
    assert (
        reduced(energy, "layer1", power=2).identity()
        == pickle.loads(pickle.dumps(reduced(energy, "layer1", power=2))).identity()
    )


def test_a_changed_reduction_is_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sealed view made by an older version of the function must not be taken for the new one's."""
    import importlib
    import linecache

    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "users_reduction.py"
    file.write_text("def halved(output):\n    return output / 2\n")
    module = importlib.import_module("users_reduction")
    before = reduced(module.halved, "layer1").identity()
    file.write_text("def halved(output):\n    return output / 2.0 + 1\n")
    importlib.invalidate_caches()
    linecache.clearcache()
    module = importlib.reload(module)
    after = reduced(module.halved, "layer1").identity()
    monkeypatch.delitem(__import__("sys").modules, "users_reduction")
    assert before["reduction"] == after["reduction"]
    assert before != after


def test_a_reduction_that_workers_cannot_import_is_refused() -> None:
    def inner(output: Tensor) -> Tensor:
        return output

    for unreachable in (inner, lambda output: output):
        with pytest.raises(ValueError, match="function of a module"):
            reduced(unreachable, "layer1")


def test_kinds_have_readable_names() -> None:
    assert [str(kind) for kind in (logits(), feature("layer1"), reduced(energy, "layer1"), input_gradient(energy))] == [
        "logits",
        "layer1",
        "energy(layer1)",
        "energy(input_gradient)",
    ]
    assert Knowledge() == logits()


def test_the_output_of_another_task_is_knowledge_with_its_own_identity() -> None:
    kind = output("boxes")
    assert kind.compute(torch.ones(2, 4), {}).tolist() == [[1.0] * 4] * 2
    assert str(kind) == "boxes"
    assert kind.identity() != logits().identity()


def test_logits_are_the_output_of_that_name_with_the_identity_of_the_first_release() -> None:
    assert output("logits") == logits()
    assert logits().identity() == {"layers": []}


def test_the_id_of_a_kind_is_equal_if_and_only_if_the_kind_is() -> None:
    kinds = [logits(), feature("a"), feature("b"), reduced(energy, "a"), input_gradient()]
    assert len({kind.id for kind in kinds}) == len(kinds)
    assert feature("a").id == feature("a").id
    assert logits().id == '{"layers":[]}'
