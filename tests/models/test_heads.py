"""Which weights follow the number of classes."""

import pytest

from stillhouse.errors import UsageError
from stillhouse.models.heads import head_weights


@pytest.mark.parametrize(
    ("model", "options", "names"),
    [
        ("resnet8", {"width": 0.5}, {"fc.weight", "fc.bias"}),
        ("vit", {"distilled": True}, {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}),
        ("torchvision:mobilenet_v2", {}, {"classifier.1.weight", "classifier.1.bias"}),
        ("torchvision:squeezenet1_0", {}, {"classifier.1.weight", "classifier.1.bias"}),
        ("timm:mobilenetv4_conv_small_050", {}, {"classifier.weight", "classifier.bias"}),
    ],
)
def test_the_head_is_what_another_class_changes(model: str, options: dict[str, object], names: set[str]) -> None:
    assert head_weights(model, options, 10, (3, 32, 32)) == names


def test_a_model_without_a_head_is_named(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.models.heads._head_weights", lambda *_: frozenset())
    with pytest.raises(UsageError, match="mlp has no head: none of its weights depends on the number of classes"):
        head_weights("mlp", {}, 10, (3, 32, 32))
