from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.data.datasets import load_dataset
from stillhouse.errors import UsageError
from stillhouse.models.architecture import describe
from stillhouse.models.features import FeatureReader
from stillhouse.models.registry import build_model, model_problems, sketch_model
from stillhouse.models.size import measure_size
from stillhouse.models.vit import VisionTransformer


def parameters(shape: tuple[int, int, int] = (3, 224, 224), classes: int = 1000, **options: Any) -> int:
    return measure_size(sketch_model("vit", num_classes=classes, input_shape=shape, **options), shape).parameters


@pytest.mark.parametrize(
    ("options", "published"),
    [
        # timm's deit_tiny_patch16_224, deit_tiny_distilled_patch16_224, deit_small_patch16_224 and its distilled form.
        ({"width": 1, "heads": 3}, 5_717_416),
        ({"width": 1, "heads": 3, "distilled": True}, 5_910_800),
        ({"width": 2, "heads": 6}, 22_050_664),
        ({"width": 2, "heads": 6, "distilled": True}, 22_436_432),
    ],
)
def test_the_deit_models_have_their_published_parameters(options: dict[str, Any], published: int) -> None:
    assert parameters(patch=16, depth=12, **options) == published


def test_parameters_and_macs_by_hand() -> None:
    # 28 x 28 images, patches of 7: 16 patches and 2 tokens, N = 18. D = 24, 2 blocks, 10 classes.
    shape, options = (1, 28, 28), {"width": 0.125, "patch": 7, "depth": 2, "heads": 2, "distilled": True}
    size = measure_size(sketch_model("vit", num_classes=10, input_shape=shape, **options), shape)
    block = 2 * 48 + (24 * 72 + 72) + (24 * 24 + 24) + (24 * 96 + 96) + (96 * 24 + 24)
    assert size.parameters == (49 * 24 + 24) + 2 * 24 + 18 * 24 + 2 * block + 48 + 2 * (24 * 10 + 10)
    macs_of_block = 18 * 24 * 72 + 2 * 18 * 18 * 24 + 18 * 24 * 24 + 2 * 18 * 24 * 96
    assert size.macs == 16 * 49 * 24 + 2 * macs_of_block + 2 * 24 * 10


def test_weights_have_the_names_of_published_checkpoints() -> None:
    state = sketch_model("vit", num_classes=10, input_shape=(3, 32, 32), distilled=True).state_dict()
    for name in (
        *("cls_token", "dist_token", "pos_embed", "patch_embed.proj.weight", "norm.bias", "head.weight", "head_dist.bias"),
        *("blocks.5.norm1.weight", "blocks.0.attn.qkv.bias", "blocks.0.attn.proj.weight", "blocks.0.norm2.bias"),
        *("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.bias"),
    ):
        assert name in state


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    model = build_model("vit", num_classes=3, input_shape=(1, 8, 8), width=0.125, patch=2, heads=2)
    assert isinstance(model, VisionTransformer)
    attention = model.blocks[0].get_submodule("attn")
    tokens = torch.randn(2, 5, 24)
    theirs = torch.nn.MultiheadAttention(24, 2, batch_first=True)
    qkv, proj = attention.get_submodule("qkv"), attention.get_submodule("proj")
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = qkv.get_parameter("weight").data, qkv.get_parameter("bias").data
    theirs.out_proj.load_state_dict(proj.state_dict())
    expected, _ = theirs(tokens, tokens, tokens)
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-5, atol=1e-6)


def read(model: torch.nn.Module, images: Tensor, *layers: str) -> dict[str, Tensor]:
    with FeatureReader(model, layers) as reader, torch.no_grad():
        logits, outputs = reader(images)
    assert logits is not None
    return {**outputs, "logits": logits}


def test_the_answer_is_the_mean_of_both_heads_and_each_has_its_token() -> None:
    torch.manual_seed(0)
    model = build_model("vit", num_classes=5, input_shape=(1, 8, 8), patch=2, depth=1, distilled=True).eval()
    found = read(model, torch.randn(3, 1, 8, 8), "head", "head_dist", "norm", "embedding", "distillation_embedding")
    torch.testing.assert_close(found["logits"], (found["head"] + found["head_dist"]) / 2)
    assert torch.equal(found["embedding"], found["norm"][:, 0])
    assert torch.equal(found["distillation_embedding"], found["norm"][:, 1])


@pytest.mark.parametrize(("depth", "stages"), [(1, ["0"]), (2, ["0", "1"]), (6, ["1", "3", "5"]), (12, ["3", "7", "11"])])
def test_maps_of_a_third_two_thirds_and_all_of_the_blocks_are_stages(depth: int, stages: list[str]) -> None:
    sketch = sketch_model("vit", num_classes=5, input_shape=(1, 8, 12), patch=2, depth=depth, width=0.125)
    architecture = describe(sketch, name="vit", input_shape=(1, 8, 12))
    assert architecture.stages == tuple(f"maps.{stage}" for stage in stages)
    assert {architecture.shape(stage) for stage in architecture.stages} == {(24, 4, 6)}
    assert architecture.shape("embedding") == (24,)


def test_a_map_has_each_patch_at_its_place() -> None:
    torch.manual_seed(0)
    model = build_model("vit", num_classes=5, input_shape=(1, 4, 6), patch=2, depth=1, width=0.125, distilled=True).eval()
    found = read(model, torch.randn(2, 1, 4, 6), "maps.0", "blocks.0")
    for row in range(2):
        for column in range(3):
            assert torch.equal(found["maps.0"][:, :, row, column], found["blocks.0"][:, 2 + 3 * row + column])


def test_patches_that_do_not_fit_and_wrong_options_are_named() -> None:
    with pytest.raises(UsageError, match="patch must divide the images' sides, 30 and 28, got 4"):
        build_model("vit", num_classes=5, input_shape=(1, 30, 28))
    options = {"patch": 0, "depth": "six", "heads": -1, "distilled": "yes"}
    problems = model_problems("vit", options, 5, (1, 28, 28))
    assert {problem.key for problem in problems} == set(options)


def test_a_small_one_learns_handwritten_digits() -> None:
    torch.manual_seed(0)
    data = load_dataset("digits", validation=200, options={"limit": 1000})
    images, labels = data.normalise(data.train.images), data.train.labels
    model = build_model("vit", num_classes=10, input_shape=data.input_shape, width=0.25, patch=2, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        batch = torch.arange(step * 64, (step + 1) * 64) % len(labels)
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        answers = model.eval()(data.normalise(data.validation.images)).argmax(1)
    assert float((answers == data.validation.labels).float().mean()) > 0.4  # 0.6 was measured, chance is 0.1
