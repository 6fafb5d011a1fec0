"""How much disk space the sealed views of a plan take, known before anything is computed."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillhouse import tasks
from stillhouse.data.images import ImageData
from stillhouse.distill.sources import layers_of
from stillhouse.knowledge.kinds import Knowledge
from stillhouse.knowledge.store import KnowledgeStore
from stillhouse.models.blueprint import sketch
from stillhouse.models.features import FeatureReader
from stillhouse.spec.controls import teacher_spec
from stillhouse.sweep.planning.knowledge_demand import plan_demand
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.planning.store_quota import StoreQuota
from stillhouse.teachers.delivery_choice import readable_bytes


@dataclass(frozen=True, kw_only=True)
class KindDiskUsage:
    """One kind of one teacher's knowledge.

    Attributes:
        bytes_per_sample: None if its function needs real values, so that the size is unknown until the teacher runs.
        views: in how many views some trial reads it.
        way: the delivery mode: `cached`, another one that the spec names, or `inline` if there is no space. The sweep may still
            find that computing a kind again is faster than reading it.
        for_want_of_room: whether it would be cached if there were more space.
    """

    teacher: str
    kind: str
    bytes_per_sample: int | None
    view_bytes: int | None
    views: int
    total_bytes: int | None
    way: str
    for_want_of_room: bool


@dataclass(frozen=True, kw_only=True)
class DiskUsage:
    """The sealed views of a plan, and the space for them.

    Attributes:
        total_bytes: of all views that are cached.
        budget_bytes: what all views together may take, including those of other sweeps, which are removed first.
        max_bytes: `knowledge.max_bytes`.
        kept_bytes: what stored views take now.
        free_bytes: of the disk.
    """

    kinds: tuple[KindDiskUsage, ...]
    total_bytes: int
    budget_bytes: int
    max_bytes: int | None
    kept_bytes: int
    free_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The usage as text; empty if no trial reads knowledge."""
        if not self.kinds:
            return []
        share = "half of the disk's free space and what views take now"
        limit = share if self.max_bytes is None else "knowledge.max_bytes"
        total, budget = readable_bytes(self.total_bytes), readable_bytes(self.budget_bytes)
        free, stored = readable_bytes(self.free_bytes), readable_bytes(self.kept_bytes)
        lines = [self._line(each) for each in self.kinds]
        lines.append(
            f"sealed views: {total} in all, of the {budget} that views may take ({limit}); "
            f"{free} of the disk are free, views take {stored} now"
        )
        if (surplus := self.total_bytes + self.kept_bytes - self.budget_bytes) > 0:
            going = readable_bytes(min(surplus, self.kept_bytes))
            lines.append(f"note: up to {going} of the stored views will be removed")
        return lines

    def _line(self, each: KindDiskUsage) -> str:
        what = f"knowledge of {each.teacher}: {each.kind}"
        if each.bytes_per_sample is None or each.view_bytes is None or each.total_bytes is None:
            return f"{what}: size unknown until the teacher runs"
        size = (
            f"{what}: {each.bytes_per_sample:,} B per sample, {readable_bytes(each.view_bytes)} per view, "
            f"{readable_bytes(each.total_bytes)} for {each.views} view{'' if each.views == 1 else 's'}"
        )
        if each.for_want_of_room:
            return (
                f"{size}, which does not fit: every trial computes it; raise knowledge.max_bytes, free some disk, "
                f"or lower views.count"
            )
        return size if each.way == "cached" else f"{size} if it were cached; it is {each.way}"


def measure_disk_usage(plan: Plan, data: ImageData, home: Path) -> DiskUsage:
    """What the plan's sealed views take, from the shapes of the knowledge, and how much space the home has.

    Raises:
        UsageError: knowledge that the spec forces to be cached does not fit, or the spec forces a kind that no method needs.
    """
    spec = plan.spec
    samples, width = len(data.train.labels), np.dtype(spec.knowledge.dtype).itemsize
    quota = StoreQuota(spec.knowledge, home)
    kinds: list[KindDiskUsage] = []
    for name, demand in plan_demand(plan, data).items():
        teacher = teacher_spec(spec, name)
        shapes = _shapes(teacher.model, teacher.options, {key: each.kind for key, each in demand.items()}, data)
        sizes = {key: None if shape is None else width * math.prod(shape) for key, shape in shapes.items()}
        # As if reading a kind took no longer than computing it: only the space decides.
        measured = {
            "bytes_per_sample": {key: size or 0 for key, size in sizes.items()},
            "read_seconds": dict.fromkeys(demand, 0.0),
            "compute_seconds": dict.fromkeys(demand, 0.0),
        }
        choices = quota.choose(demand, measured, {"teacher": name}, samples)
        for key, each in demand.items():
            size, way = sizes[key], choices[key].mode
            wanted = spec.knowledge.ways.get(str(each.kind), spec.knowledge.way)
            kinds.append(
                KindDiskUsage(
                    teacher=name,
                    kind=str(each.kind),
                    bytes_per_sample=size,
                    view_bytes=None if size is None else size * samples,
                    views=len(each.views),
                    total_bytes=None if size is None else size * samples * len(each.views),
                    way=way,
                    for_want_of_room=wanted == "auto" and way != "cached",
                )
            )
    quota.check_forced()
    store = KnowledgeStore(home / "knowledge")
    return DiskUsage(
        kinds=tuple(kinds),
        total_bytes=sum(each.total_bytes or 0 for each in kinds if each.way == "cached"),
        budget_bytes=store.budget(spec.knowledge.max_bytes),
        max_bytes=spec.knowledge.max_bytes,
        kept_bytes=sum(entry["bytes"] for entry in store.entries()),
        free_bytes=shutil.disk_usage(next(folder for folder in (home, *home.parents) if folder.exists())).free,
    )


def _shapes(
    model: str, options: Mapping[str, Any], kinds: Mapping[str, Knowledge], data: ImageData
) -> dict[str, tuple[int, ...] | None]:
    """The shape of each kind for one sample, by a pass on the meta device; None if its function needs real values."""
    task = tasks.of(data)
    images = task.example_input(data, 2, "meta")
    shapes: dict[str, tuple[int, ...] | None] = {}
    teacher = sketch(model, options, data.num_classes, data.input_shape).eval()
    with torch.no_grad(), FeatureReader(teacher, layers_of(kinds)) as reader:
        raw, features = reader(images)
        assert raw is not None
        outputs = task.outputs(raw)
        for text, kind in kinds.items():
            weights = [reader.weight(weight) for weight in kind.weights]
            draws = torch.empty(2, kind.draws, dtype=torch.float64, device="meta") if kind.draws else None
            output = images if kind.of_input else raw if kind.layers else outputs[kind.output]
            try:
                shapes[text] = tuple(kind.compute(output, features, weights, draws).shape[1:])
            except (RuntimeError, TypeError, ValueError):
                shapes[text] = None
    return shapes
