"""Ghost-ResNet and Ghost-VGG for small images (Han et al., arXiv 1911.11907, section 4.1).

Every convolution of the ResNet or VGG but the first, and but those of shortcuts, becomes a ghost module. A 3x3 convolution has
a 3x3 primary convolution by default, which gives the paper's counts: 158 M MACs of Ghost-VGG-16 and half the weights of
ResNet-56. `primary_kernel: 1` is the variant of some implementations, smaller and less accurate.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from stillhouse.models.ghost import GhostModule
from stillhouse.models.layers import Add, Shape, scaled
from stillhouse.models.resnet import CifarResNet, projection
from stillhouse.models.vgg import BLOCKS, VGG

NewModule = Callable[..., GhostModule]


class GhostBasicBlock(nn.Module):
    """Two ghost modules; `add` is the map before the last ReLU."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int, *, ghost: NewModule) -> None:
        super().__init__()
        self.conv1 = ghost(num_inputs, num_outputs, stride=stride)
        self.conv2 = ghost(num_outputs, num_outputs, relu=False)
        self.downsample = projection(num_inputs, num_outputs, stride)
        self.add = Add()
        self.relu2 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        output: Tensor = self.relu2(self.add(self.conv2(self.conv1(maps)), self.downsample(maps)))
        return output


def _resnet_builder(depth: int) -> Callable[..., nn.Module]:
    def build(
        *, num_classes: int, input_shape: Shape, width: float = 1.0, ratio: int = 2, dw_size: int = 3, primary_kernel: int = 3
    ) -> CifarResNet:
        stem, first, second, third = (scaled(number, width) for number in (16, 16, 32, 64))
        ghost = partial(GhostModule, kernel_size=primary_kernel, ratio=ratio, dw_size=dw_size)
        return CifarResNet(
            num_classes=num_classes,
            input_shape=input_shape,
            num_blocks=(depth - 2) // 6,
            channels=(stem, first, second, third),
            new_block=partial(GhostBasicBlock, ghost=ghost),
        )

    return build


def _vgg_builder(num_convolutions: tuple[int, ...]) -> Callable[..., nn.Module]:
    def build(
        *, num_classes: int, input_shape: Shape, width: float = 1.0, ratio: int = 2, dw_size: int = 3, primary_kernel: int = 3
    ) -> VGG:
        channels = tuple(scaled(number, width) for number in (64, 128, 256, 512, 512))
        ghost = partial(GhostModule, kernel_size=primary_kernel, ratio=ratio, dw_size=dw_size)
        return VGG(
            num_classes=num_classes,
            input_shape=input_shape,
            num_convolutions=num_convolutions,
            channels=channels,
            new_convolution=ghost,
        )

    return build


MODELS: dict[str, Callable[..., nn.Module]] = {
    **{f"ghost_resnet{depth}": _resnet_builder(depth) for depth in (8, 14, 20, 32, 44, 56)},
    **{f"ghost_{name}": _vgg_builder(blocks) for name, blocks in BLOCKS.items()},
}
