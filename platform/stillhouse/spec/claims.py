"""What teachers and trials claim of the cluster: the keys `resources` of a teacher and `trial_resources`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from stillhouse.spec.display import show
from stillhouse.spec.values import Section, invalid


def _parse_custom(value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise invalid(f"must be a mapping such as {{teacher_node: 1}}, got {show(value)}")
    for name, amount in value.items():
        if not isinstance(name, str) or not name or name.lower() in ("cpu", "gpu", "memory", "object_store_memory"):
            raise invalid(f"must name custom resources, such as teacher_node, got {show(name)}")
        number = isinstance(amount, int | float) and not isinstance(amount, bool)
        if not number or amount <= 0 or (amount > 1 and amount != int(amount)):
            raise invalid(f"must be a fraction of one or a whole number, got {show(amount)}", below=name)
    return dict(value)


def _parse_labels(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise invalid(f"must be a mapping such as {{pool: teacher}}, got {show(value)}")
    for name, label in value.items():
        if not isinstance(name, str) or not isinstance(label, str) or not label:
            problem = f"must be text such as teacher, in quotes if YAML would read a number, got {show(label)}"
            raise invalid(problem, below=str(name))
    return dict(value)


class Claim(Section):
    """What a process claims on a node besides cores and GPUs.

    Attributes:
        custom: resources that nodes were started with, `ray start --resources='{"teacher_node": 1}'`.
        labels: what the node must be labelled with, `ray start --labels=pool=teacher`; `"!trial"` and `in(a, b)` are
            conditions as in Ray.
    """

    custom: Annotated[dict[str, float], PlainValidator(_parse_custom)] = Field(default_factory=dict)
    labels: Annotated[dict[str, str], PlainValidator(_parse_labels)] = Field(default_factory=dict)


class Resources(Claim):
    """What a teacher claims of the cluster.

    Attributes:
        cpu: cores; a teacher that only fills views needs none of its own.
        gpu: GPUs, or a share of one.
    """

    cpu: Annotated[float, Field(ge=0)] = 0.0
    gpu: Annotated[float, Field(ge=0)] = 0.0


class TrialResources(Claim):
    """What one trial claims of the cluster while it runs.

    Attributes:
        cpu: cores of one trial; as many threads compute in it.
        gpu: GPUs of one trial, or a share of one; 0 trains on the CPU.
        workers: processes on one node that train each student together and share the rest evenly; null means one for each GPU.
        packed: how many trials share one process, and its claim, by taking turns; 1 gives each trial a process of its own.
    """

    cpu: Annotated[float, Field(gt=0)] = 1.0
    gpu: Annotated[float, Field(ge=0)] = 0.0
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    packed: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def num_workers(self) -> int:
        return max(1, int(self.gpu)) if self.workers is None else self.workers
