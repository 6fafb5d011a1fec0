"""Generation of images of given classes: `generation` with a class drawn for each sample, which generator and critic read."""

from typing import ClassVar

from stillhouse.tasks.generation import Generation


class ConditionalGeneration(Generation):
    """Inputs [B, 100 + classes]: noise, and 1 for the class that is drawn for the sample."""

    conditional: ClassVar[bool] = True
