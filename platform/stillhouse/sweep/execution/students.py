"""A trial's student: its network, its identity and its size."""

from torch import nn

from stillhouse import tasks
from stillhouse.data.datasets import ImageData
from stillhouse.knowledge.code_version import named_version
from stillhouse.models.registry import build_model
from stillhouse.models.size import ModelSize
from stillhouse.spec.records import StudentChoice


def build_student(student: StudentChoice, data: ImageData) -> nn.Module:
    return build_model(student.model, **tasks.of(data).model_arguments(data), **student.options)


def student_key(student: StudentChoice) -> str:
    """Equal for equal networks, whatever their names; includes the code of a user-defined model."""
    options = ",".join(f"{name}={student.options[name]!r}" for name in sorted(student.options))
    version = named_version(student.model)
    return f"{student.model}({options})" + (f"#{version}" if version else "")


def size_metrics(size: ModelSize) -> dict[str, float]:
    return {
        "parameters": size.parameters,
        "trainable_parameters": size.trainable_parameters,
        "size_bytes": size.size_bytes,
        "macs": size.macs,
    }
