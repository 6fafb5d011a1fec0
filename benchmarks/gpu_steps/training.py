"""Steps 3 and 4: resumed trainings in every precision, and what a training step takes."""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_steps.parts import counted_syncs, new_model, new_trainer, random_data, seconds
from gpu_steps.plan import Settings, finish
from gpu_steps.replacements import missing_package

_WEIGHT_TOLERANCE = 1e-3
_RESUMED_SPEED = 0.95
_CACHED_OVER_SUPERVISED = 1.1


def resuming(settings: Settings) -> dict[str, Any]:
    """Two epochs, saved, loaded and two more end as four: with each optimiser in each precision, and as fast."""
    data = random_data(settings.size(3200, 128), settings.size(32, 16))
    problems: list[str] = []
    speeds: dict[str, float] = {}
    for optimizer in ("sgd", "adam", "adamw"):
        for precision in settings.size(("off", "bfloat16", "float16"), ("off",)):
            name = f"{optimizer}, {precision}"
            training = {"optimizer": optimizer, "mixed_precision": precision, "learning_rate": 1e-3}

            def make(training: dict[str, Any] = training) -> Any:
                return new_trainer(settings.size("resnet8", "lenet"), data, settings, epochs=4, training=training)

            found, speed = _resume(name, make, settings)
            problems += found
            speeds[name] = speed
            if speed < _RESUMED_SPEED and not settings.tiny:
                problems.append(f"{name}: the resumed training has {speed:.2f} of the speed")
    return finish(problems, {"resumed_speed": speeds, "slowest": min(speeds.values())})


def _resume(name: str, make: Callable[[], Any], settings: Settings) -> tuple[list[str], float]:
    """What is wrong with the resumed training, and its speed over that of the straight one."""
    problems = []
    straight, first, resumed = make(), make(), make()
    _epochs(straight, 2)
    usual = seconds(lambda: _epochs(straight, 2), settings)
    _epochs(first, 2)
    with tempfile.TemporaryDirectory() as folder:
        first.save(Path(folder) / "checkpoint")
        resumed.load(Path(folder) / "checkpoint")
    saved, loaded = (each._current.optimisers.state_dict() for each in (first, resumed))
    if saved["scaler"] != loaded["scaler"]:
        problems.append(f"{name}: the loss scale is {loaded['scaler']} after loading, {saved['scaler']} before")
    for group in resumed._current.optimisers._groups.values():
        fused = any(each.get("fused") for each in group.param_groups)
        steps = [state["step"] for state in group.state.values() if torch.is_tensor(state.get("step"))]
        if not fused and any(step.device.type != "cpu" for step in steps):
            problems.append(f"{name}: the optimiser's step counters are on {steps[0].device}, where each step reads them back")
    again = seconds(lambda: _epochs(resumed, 2), settings)
    weights = resumed.student.state_dict()
    for key, expected in straight.student.state_dict().items():
        largest, difference = float(expected.float().abs().max()), float((weights[key].float() - expected.float()).abs().max())
        if not difference <= _WEIGHT_TOLERANCE * max(largest, 1e-3):
            problems.append(f"{name}: {key} differs by {difference:.3g} after resuming, its largest value is {largest:.3g}")
            break
    return problems, usual / again


def _epochs(trainer: Any, count: int) -> None:
    for _ in range(count):
        trainer.run_epoch()


def step_times(settings: Settings) -> dict[str, Any]:
    """Milliseconds, kernels and synchronisations of a step, without a teacher and with knowledge of several sizes."""
    from stillhouse import methods

    data = random_data(settings.size(1600, 64), settings.size(32, 16))
    model, teacher = settings.size(("resnet8x4", "resnet32x4"), ("lenet", "resnet8"))
    batch = 64
    wide = {"batch_size": settings.size(128, 64)}
    contenders: dict[str, dict[str, Any]] = {
        "supervised": {},
        "mixup": {"policy": ("crop", "flip", "mixup")},
        "kd, inline": {"method": methods.find("kd")(), "inline": True},
        "kd, cached": {"method": methods.find("kd")()},
        "fitnets, cached maps": {"method": methods.find("fitnets")(), "training": wide},
        "contrastive, cached": {"method": methods.find("contrastive")(), "training": wide},
        "kd_svd, cached": {"method": methods.find("kd_svd")()},
    }
    if settings.tiny:
        # On a CPU they take longer than all others together.
        del contenders["contrastive, cached"], contenders["mixup"]
    rows: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}
    problems: list[str] = []
    for name, contender in contenders.items():
        try:
            rows[name] = _measure(model, teacher, data, settings, batch, **contender)
        except Exception as error:
            package = missing_package(error, ())
            if package is None:
                problems.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:300]}")
            else:
                skipped[name] = f"skipped: needs {package}, which is not installed"
    known = {name: row["ms"] for name, row in rows.items()}
    if not settings.tiny and {"supervised", "kd, cached"} <= known.keys():
        ratio = known["kd, cached"] / known["supervised"]
        if ratio > _CACHED_OVER_SUPERVISED:
            problems.append(f"kd with cached logits takes {ratio:.2f} of a supervised step, must be {_CACHED_OVER_SUPERVISED}")
    return finish(problems, {**rows, **skipped, "eigenvectors_ms": _decompositions(settings)})


def _decompositions(settings: Settings) -> dict[str, float]:
    """Milliseconds of the eigenvectors of 64 symmetric matrices, as a step of kd_svd takes them, by size and number format."""
    times = {}
    for size in settings.size((16, 32, 64), (16,)):
        draws = torch.randn(64, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for dtype in (torch.float64, torch.float32):
            matrices = (draws @ draws.mT).to(settings.device, dtype)
            torch.linalg.eigh(matrices)
            each = [seconds(lambda: torch.linalg.eigh(matrices), settings) for _ in range(settings.size(9, 1))]  # noqa: B023
            times[f"{size}, {str(dtype).removeprefix('torch.')}"] = 1000 * statistics.median(each)
    return times


def _measure(
    model: str,
    teacher: str,
    data: Any,
    settings: Settings,
    batch: int,
    *,
    inline: bool = False,
    method: Any = None,
    training: dict[str, Any] | None = None,
    policy: tuple[str, ...] = ("crop", "flip"),
) -> dict[str, float]:
    from stillhouse.data.views import Views
    from stillhouse.distill.sources import CachedKnowledge, InlineKnowledge
    from stillhouse.models.architecture import describe

    epochs = settings.size(8, 1)
    recipe = {"batch_size": batch, **(training or {})}
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {}
        if method is not None:
            torch.manual_seed(0)
            network = new_model(teacher, data).to(settings.device).eval().requires_grad_(False)
            taught = describe(network, name=teacher, input_shape=data.input_shape)
            pupil = describe(new_model(model, data), name=model, input_shape=data.input_shape)
            kinds = dict(method.knowledge(taught, pupil))
            views = Views(policy, 1, data.input_shape, len(data.train.labels))
            source = (
                InlineKnowledge(network, kinds, data.train.labels)
                if inline
                else CachedKnowledge(_sealed(Path(folder), network, kinds, data, views, settings))
            )
            given = {"teacher": source, "teacher_architecture": taught, "teacher_weights": network.state_dict}
        trainer = new_trainer(model, data, settings, method=method, policy=policy, epochs=epochs + 2, training=recipe, **given)
        trainer.run_epoch()
        steps = trainer.split.batches_per_epoch
        times = [seconds(trainer.run_epoch, settings) / steps for _ in range(epochs)]
        row = {"ms": 1000 * statistics.median(times), "batch": float(recipe["batch_size"])}
        return row | _profile(trainer, steps, settings)


def _sealed(folder: Path, network: Any, kinds: dict[str, Any], data: Any, views: Any, settings: Settings) -> Any:
    """Seals view 0 with what the network says; returns what opens it."""
    from stillhouse.distill.sources import compute_knowledge, layers_of
    from stillhouse.knowledge.store import KnowledgeStore
    from stillhouse.models.features import FeatureReader

    store, count = KnowledgeStore(folder), len(data.train.labels)
    images = data.train.images.to(settings.device)
    identities = {name: {"knowledge": kind.identity(), "view": 0} for name, kind in kinds.items()}
    rows: dict[str, list[Any]] = {name: [] for name in kinds}
    with FeatureReader(network, layers_of(kinds)) as reader:
        for places in torch.arange(count, device=settings.device).split(256):
            batch = data.normalise(views.augment(images, places, 0))
            for name, values in compute_knowledge(reader, kinds, batch, data.train.labels[places.cpu()]).items():
                rows[name].append(values.cpu())
    for name, identity in identities.items():
        values = torch.cat(rows[name]).numpy()
        if not store.is_sealed(identity):
            with store.writer(identity, rows=count, shape=values.shape[1:], dtype="float32") as writer:
                writer.put(torch.arange(count).numpy(), values)
                writer.commit()
                writer.seal()
    return lambda _view, names=None, _reading=None: {name: store.open(identity) for name, identity in identities.items()}


def _profile(trainer: Any, steps: int, settings: Settings) -> dict[str, float]:
    """Kernels and synchronisations of a step, and the share of the time in which the GPU computes, over one epoch."""
    if settings.device == "cpu":
        trainer.run_epoch()
        return {}
    from torch.profiler import ProfilerActivity, profile

    with counted_syncs(settings) as syncs, profile(activities=[ProfilerActivity.CUDA]) as profiler:
        elapsed = seconds(trainer.run_epoch, settings)
    kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.device_time_total for event in kernels) / 1e6
    return {"kernels": len(kernels) / steps, "syncs": syncs[0] / steps, "busy_share": busy / elapsed}
