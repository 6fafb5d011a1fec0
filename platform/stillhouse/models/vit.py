"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929) in DeiT's form (Touvron et al., arXiv 2012.12877).

Images are cut into patches, each of which becomes a token; a class token and a learned position for each token are added. Every
block normalises before its attention and before its perceptron. The logits come from the class token. With `distilled`
there is a second token with a head of its own, and the logits are the mean of both heads, as DeiT answers.

At width 1 a token has 192 numbers, as in DeiT-Ti, whose parameters and names of weights are those of `patch: 16, depth: 12` on
images of 224 pixels; DeiT-S is `width: 2, heads: 6`. The defaults are for images of 28 to 32 pixels; images of 8 pixels need
`patch: 2`. The maps of a third, two thirds and all of the blocks are the stages; they have one resolution.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stillhouse.models.layers import Shape, scaled
from stillhouse.models.stage_maps import TokenMap

_CHANNELS = 192
_EPSILON = 1e-6
_STAGES = 3


class PatchEmbedding(nn.Module):
    """Images [B, channels, H, W] as tokens [B, patches, D], row by row."""

    def __init__(self, num_inputs: int, num_outputs: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(num_inputs, num_outputs, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.proj(images).flatten(2).mT
        return tokens


class Attention(nn.Module):
    """Self-attention of tokens [B, N, D] with several heads.

    Written as matrix products, so that multiply-accumulates are counted and programs are the same on every device.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, number, channels = tokens.shape
        split = self.qkv(tokens).reshape(batch, number, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        shares = torch.softmax(query @ key.mT * (channels // self.heads) ** -0.5, dim=-1)
        mixed: Tensor = self.proj((shares @ value).transpose(1, 2).reshape(batch, number, channels))
        return mixed


class Block(nn.Module):
    """Attention and a perceptron with four times the channels, each on normalised tokens and added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=_EPSILON)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=_EPSILON)
        layers = [("fc1", nn.Linear(channels, 4 * channels)), ("act", nn.GELU()), ("fc2", nn.Linear(4 * channels, channels))]
        self.mlp = nn.Sequential(OrderedDict[str, nn.Module](layers))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


class Token(nn.Module):
    """One of the tokens: [B, N, D] to [B, D]."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.place]


class VisionTransformer(nn.Module):
    """See the module.

    Raises:
        ValueError: the patches do not fit the images.
    """

    preactivation_layers: tuple[str, ...] = ()
    pooled_layer = "embedding"

    def __init__(
        self, *, num_classes: int, input_shape: Shape, channels: int, patch: int, depth: int, heads: int, distilled: bool
    ) -> None:
        super().__init__()
        height, width = input_shape[1] // patch, input_shape[2] // patch
        if (height * patch, width * patch) != tuple(input_shape[1:]):
            raise ValueError(f"patch must divide the images' sides, {input_shape[1]} and {input_shape[2]}, got {patch}")
        first = 2 if distilled else 1
        self.patch_embed = PatchEmbedding(input_shape[0], channels, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, channels)) if distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, first + height * width, channels))
        self.blocks = nn.ModuleList(Block(channels, heads) for _ in range(depth))
        ends = sorted({-(-depth * number // _STAGES) - 1 for number in range(1, _STAGES + 1)})
        self.maps = nn.ModuleDict({str(block): TokenMap(first, height, width) for block in ends})
        self.stage_layers = tuple(f"maps.{block}" for block in ends)
        self.norm = nn.LayerNorm(channels, eps=_EPSILON)
        self.embedding = Token(0)
        self.head = nn.Linear(channels, num_classes)
        self.distillation_embedding = Token(1) if distilled else None
        self.head_dist = nn.Linear(channels, num_classes) if distilled else None
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal weights of deviation 0.02 and biases of 0, as in DeiT."""
        tokens = [self.cls_token, self.pos_embed, *([] if self.dist_token is None else [self.dist_token])]
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for weight in (*tokens, *(module.weight for module in linear)):
            nn.init.trunc_normal_(weight, std=0.02)
        for module in linear:
            nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        given = [self.cls_token] if self.dist_token is None else [self.cls_token, self.dist_token]
        tokens = torch.cat([*(token.expand(patches.shape[0], -1, -1) for token in given), patches], dim=1) + self.pos_embed
        for number, block in enumerate(self.blocks):
            tokens = block(tokens)
            if str(number) in self.maps:
                self.maps[str(number)](tokens)  # for methods, which read the outputs of layers
        tokens = self.norm(tokens)
        logits: Tensor = self.head(self.embedding(tokens))
        if self.head_dist is None or self.distillation_embedding is None:
            return logits
        answer: Tensor = (logits + self.head_dist(self.distillation_embedding(tokens))) / 2
        return answer


def vit(
    *,
    num_classes: int,
    input_shape: Shape,
    width: float = 1.0,
    patch: int = 4,
    depth: int = 6,
    heads: int = 3,
    distilled: bool = False,
) -> VisionTransformer:
    """A vision transformer whose tokens have 192 numbers times `width`, rounded to a multiple of `heads`."""
    return VisionTransformer(
        num_classes=num_classes,
        input_shape=input_shape,
        channels=scaled(_CHANNELS, width, multiple=heads),
        patch=patch,
        depth=depth,
        heads=heads,
        distilled=distilled,
    )


MODELS: dict[str, Callable[..., nn.Module]] = {"vit": vit}
