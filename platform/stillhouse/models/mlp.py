"""Multi-layer perceptrons."""

from collections.abc import Sequence

from torch import Tensor, nn

from stillhouse.models.layers import Shape, hidden_layers, scaled


class MLP(nn.Module):
    """Pixels -> hidden layers with ReLU, each followed by dropout -> logits."""

    stage_layers: tuple[str, ...] = ()
    preactivation_layers: tuple[str, ...] = ()

    def __init__(self, *, num_classes: int, input_shape: Shape, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.flatten = nn.Flatten()
        self.hidden = hidden_layers(channels * height * width, hidden, dropout)
        self.classifier = nn.Linear(hidden[-1], num_classes)
        self.pooled_layer = f"hidden.relu{len(hidden)}"

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.hidden(self.flatten(images)))
        return logits


def mlp(
    *, num_classes: int, input_shape: Shape, hidden: Sequence[int] = (256, 128), width: float = 1.0, dropout: float = 0.0
) -> MLP:
    """A perceptron with hidden layers of the sizes `hidden`, each times `width`."""
    sizes = [scaled(size, width) for size in hidden]
    return MLP(num_classes=num_classes, input_shape=input_shape, hidden=sizes, dropout=dropout)


def mlp_800_800(*, num_classes: int, input_shape: Shape, width: float = 1.0, dropout: float = 0.0) -> MLP:
    """The MNIST student of the noisy-teachers paper (arXiv 1610.09650): two hidden layers of 800 units."""
    return mlp(num_classes=num_classes, input_shape=input_shape, hidden=(800, 800), width=width, dropout=dropout)


MODELS = {"mlp": mlp, "mlp_800_800": mlp_800_800}
