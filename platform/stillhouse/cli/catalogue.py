"""What a method asks of a teacher, said without a sweep: for the list of methods."""

from stillhouse.distill.method import Method
from stillhouse.errors import UsageError
from stillhouse.models.blueprint import blueprint
from stillhouse.models.registry import model_names

_CLASSES = 100
_SHAPE = (3, 32, 32)


def asked_by_default(kind: type[Method]) -> list[str]:
    """The kinds of knowledge that the method asks with its defaults, in words; empty when it asks nothing.

    Layers stand for what a method asks of the first shipped teacher that suits it, as a student of its own kind.
    """
    method = kind()
    problem: Exception | None = None
    for name in model_names():
        architecture = blueprint(name, {}, _CLASSES, _SHAPE).architecture
        if len(architecture.stages) < 2:
            continue
        try:
            asked = method.knowledge(architecture, architecture)
        except ValueError as error:
            problem = error
            continue
        return sorted({str(each) for each in asked.values()}) + (["calls on its own inputs"] if kind.calls_teacher else [])
    raise UsageError(f"no shipped model suits {kind.__name__} as teacher and student: {problem}")
