"""Rules that span several keys of a spec, each of which is fine alone."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from stillhouse.errors import Problem, did_you_mean
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.schema import ADAPTIVE, SearchSpec, StudentSpec, SweepSpec, TeacherSpec
from stillhouse.spec.training import Training

SIZE_OBJECTIVES = {
    "parameters": "min",
    "size_bytes": "min",
    "macs": "min",
    "latency_ms": "min",
}


def combination_problems(
    spec: SweepSpec, *, broken: Collection[str] = (), student_places: Sequence[int] | None = None
) -> list[Problem]:
    """What is impossible about the spec's keys taken together.

    Sections and entries that have problems of their own (`broken`) are skipped. `student_places` are the positions of the
    spec's students in the list that the user wrote.
    """
    sound = Soundness(broken)
    problems: list[Problem] = []
    if not (spec.methods is not None or spec.teachers or sound.touched("methods") or sound.touched("teachers")):
        problems.append(
            Problem("methods", "or teachers must be given; list the methods to compare, such as methods: [scratch]")
        )
    problems += _labels(spec, student_places or range(len(spec.students)))
    problems += _sources(spec, student_places or range(len(spec.students)), sound)
    for place, student in zip(student_places or range(len(spec.students)), spec.students, strict=True):
        problems += _idle_with_weights(f"students[{place}]", student)
    if sound("objectives"):
        problems += _objectives(spec, empty=not sound.touched("objectives"))
    if sound("search.scheduler", "search.grace_epochs", "search.max_epochs"):
        problems += _search(spec.search)
    if sound("dataset.validation", "search.scheduler", "search.algorithm"):
        problems += _chosen_without_validation(spec)
    if sound("search.budget", "trial_resources.gpu") and spec.search.budget.gpu_hours and not spec.trial_resources.gpu:
        problems.append(Problem("search.budget.gpu_hours", "needs trial_resources.gpu > 0, got 0; use trial_hours"))
    problems += _training("training", spec.training, "trial_resources.gpu", spec.trial_resources.gpu, sound)
    if sound("training.warmup_epochs", "search.max_epochs"):
        problems += _warmup("training", spec.training, spec.search.max_epochs)
    for name, teacher in spec.teachers.items():
        problems += _idle_with_weights(f"teachers.{name}", teacher)
        if teacher.is_trained:
            key = f"teachers.{name}"
            problems += _training(f"{key}.train", teacher.train, f"{key}.resources.gpu", teacher.resources.gpu, sound)
            if teacher.train.sync_batchnorm:
                problems.append(Problem(f"{key}.train.sync_batchnorm", "must be false, got true: one process trains a teacher"))
            problems += _warmup(f"{key}.train", teacher.train, teacher.train.epochs)
    shares = [("trial_resources.gpu", spec.trial_resources.gpu)]
    shares += [(f"teachers.{name}.resources.gpu", teacher.resources.gpu) for name, teacher in spec.teachers.items()]
    if sound("trial_resources"):
        problems += _workers(spec)
        problems += _packed(spec, sound)
        if sound("training.sync_batchnorm"):
            problems += _sync_batchnorm(spec)
    for key, gpu in shares:
        if gpu > 1 and gpu != int(gpu):
            problems.append(Problem(key, f"must be a fraction of one GPU or a whole number of them, got {gpu:g}"))
    return problems


def _workers(spec: SweepSpec) -> Iterator[Problem]:
    claim = spec.trial_resources
    # A fraction above one is reported separately. NCCL refuses two processes on one GPU.
    fitting = max(1, int(claim.gpu))
    if claim.gpu and claim.num_workers != fitting and (claim.gpu < 1 or claim.gpu.is_integer()):
        yield Problem("trial_resources.workers", f"must be {fitting}, one for each GPU, got {claim.num_workers}")
    if spec.training.batch_size < claim.num_workers:
        yield Problem(
            "training.batch_size", f"must be >= the {claim.num_workers} workers of a trial, got {spec.training.batch_size}"
        )


def _sync_batchnorm(spec: SweepSpec) -> Iterator[Problem]:
    claim = spec.trial_resources
    if spec.training.sync_batchnorm and (claim.gpu <= 1 or claim.num_workers == 1):
        yield Problem(
            "training.sync_batchnorm",
            "must be false unless several workers with a GPU each train a student, got true with "
            f"trial_resources.gpu: {claim.gpu:g} and {claim.num_workers} workers; PyTorch's SyncBatchNorm needs GPUs",
        )


class Soundness:
    """Which keys of a spec can be relied on, given the sections and entries that have problems."""

    def __init__(self, broken: Collection[str]) -> None:
        self._broken = frozenset(broken)

    def __call__(self, *keys: str) -> bool:
        """Whether neither the keys nor the sections around them have problems."""
        return not any(key in self._broken or key.split(".")[0].split("[")[0] in self._broken for key in keys)

    def touched(self, section: str) -> bool:
        """Whether the section or any of its entries has problems."""
        return any(key == section or key.startswith((f"{section}.", f"{section}[")) for key in self._broken)


def _packed(spec: SweepSpec, sound: Soundness) -> Iterator[Problem]:
    """Trials that share a process must fit one worker, and none may change what the others compute."""
    packed = spec.trial_resources.packed
    if packed == 1:
        return
    if spec.trial_resources.num_workers > 1:
        yield Problem(
            "trial_resources.packed",
            f"must be 1 where several workers train a student, got {packed} with {spec.trial_resources.num_workers} workers",
        )
    if spec.trial_resources.gpu > 1:
        yield Problem("trial_resources.packed", f"must be 1 with more than one GPU, got {packed}; set trial_resources.gpu <= 1")
    if sound("training.micro_batch") and spec.training.micro_batch == "auto":
        yield Problem(
            "training.micro_batch",
            "must be null or a number with trial_resources.packed > 1, got auto: the memory that one trial finds would depend "
            "on the others in its process",
        )
    if sound("training.compile") and spec.training.compile:
        yield Problem(
            "training.compile",
            "must be false with trial_resources.packed > 1, got true: the end of one trial drops the compiled code of all",
        )


def idle_settings(spec: SweepSpec) -> list[str]:
    """One sentence for each setting that has no effect."""
    default = SearchSpec()
    notes: list[str] = []
    without = {
        "grace_epochs": (spec.search.scheduler == "none", "search.scheduler: asha or median"),
        "reduction_factor": (spec.search.scheduler != "asha", "search.scheduler: asha"),
        "startup_trials": (spec.search.algorithm not in ADAPTIVE, "search.algorithm: tpe or nsga2"),
        "trials_ahead": (spec.search.algorithm not in ADAPTIVE, "search.algorithm: tpe or nsga2"),
    }
    notes += [
        f"search.{key} has no effect without {what}"
        for key, (idle, what) in without.items()
        if idle and getattr(spec.search, key) != getattr(default, key)
    ]
    if spec.search.algorithm in ADAPTIVE:
        share = -(-spec.search.trials_per_method // max(1, len(spec.students)))
        if share <= spec.search.startup_trials:
            notes.append(
                f"search.algorithm = {spec.search.algorithm} has no effect: each method and student gets {share} trials, and "
                f"search.startup_trials = {spec.search.startup_trials} are drawn at random first"
            )
    if spec.search.algorithm == "grid" and spec.search.trials_per_method != default.trials_per_method:
        notes.append("search.trials_per_method has no effect with search.algorithm: grid, which runs every combination")
    notes += _idle_training("training", spec.training)
    for name, teacher in spec.teachers.items():
        if teacher.is_trained:
            notes += _idle_training(f"teachers.{name}.train", teacher.train)
        elif teacher.train != type(teacher.train)():
            key = f"teachers.{name}"
            notes.append(f"{key}.train has no effect with {key}.weights; to train them further, write {key}.head: kept")
    return notes


def _labels(spec: SweepSpec, places: Sequence[int]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for place, student in zip(places, spec.students, strict=True):
        if student.name in first:
            yield Problem(
                f"students[{place}].name",
                f"must be unique, '{student.name}' is the name of students[{first[student.name]}] too; give the entry a name:",
            )
        first.setdefault(student.name, place)


def _sources(spec: SweepSpec, places: Sequence[int], sound: Soundness) -> Iterator[Problem]:
    for place, student in zip(places, spec.students, strict=True):
        if student.source is None or student.source in spec.teachers:
            continue
        # A teacher with problems of its own is left out of the spec.
        if sound("teachers") and sound(f"teachers.{student.source}"):
            hint = did_you_mean(student.source, spec.teachers) if spec.teachers else "; the spec has none"
            yield Problem(f"students[{place}].from", f"must name a teacher of the spec, got '{student.source}'{hint}")


def _idle_with_weights(key: str, entry: TeacherSpec | StudentSpec) -> Iterator[Problem]:
    """Keys that say how given weights are read, where none are given."""
    for name in ("rename", "head") if entry.weights is None else ():
        if value := getattr(entry, name):
            yield Problem(f"{key}.{name}", f"needs {key}.weights, got {value}; name the weights or remove it")


def _objectives(spec: SweepSpec, *, empty: bool) -> Iterator[Problem]:
    if empty and not spec.objectives:
        yield Problem("objectives", "must name at least one objective, such as {validation_accuracy: max, parameters: min}")
    if not may_have_another_metric(spec):
        yield from objective_problems(spec.objectives, ACCURACY)


def may_have_another_metric(spec: SweepSpec) -> bool:
    """Whether the metric is known only once the task is: a user-defined task, or one that the data set declares."""
    return spec.task is not None or ":" in spec.dataset.name


def objective_problems(objectives: Mapping[str, str], metric: Metric) -> Iterator[Problem]:
    """What is wrong with the objectives of a task whose metric is `metric`."""
    column = metric.column("validation")
    known = {column: metric.direction, **SIZE_OBJECTIVES}
    for name, direction in objectives.items():
        if name == metric.column("test"):
            yield Problem(f"objectives.{name}", f"must not be searched: the test split is read once, at the end; use {column}")
        elif name not in known:
            yield Problem(f"objectives.{name}", f"is not an objective{did_you_mean(name, known)}")
        elif direction != known[name]:
            yield Problem(f"objectives.{name}", f"must be {known[name]}, got {direction}")


def _search(search: SearchSpec) -> Iterator[Problem]:
    if search.scheduler != "none" and search.grace_epochs > search.max_epochs:
        yield Problem("search.grace_epochs", f"must be <= search.max_epochs = {search.max_epochs}, got {search.grace_epochs}")


def _chosen_without_validation(spec: SweepSpec) -> Iterator[Problem]:
    """Searches that use results on the validation split where the data set has none."""
    uses = {
        "scheduler": (spec.search.scheduler != "none", "stops trials"),
        "algorithm": (spec.search.algorithm in ADAPTIVE, "chooses trials"),
    }
    for key, (used, what) in uses.items():
        if used and spec.dataset.validation == 0:
            setting = f"search.{key}: {getattr(spec.search, key)}"
            yield Problem("dataset.validation", f"must be > 0 with {setting}, which {what} by validation results, got 0")


def _training(key: str, training: Training, gpu_key: str, gpu: float, sound: Soundness) -> Iterator[Problem]:
    if sound(f"{key}.mixed_precision", gpu_key) and training.mixed_precision == "float16" and not gpu:
        yield Problem(f"{key}.mixed_precision", f"must be off or bfloat16 without a GPU, got float16; or set {gpu_key}")
    if training.nesterov and training.optimizer == "sgd" and not training.momentum:
        yield Problem(f"{key}.nesterov", "must be false without momentum, got true; set momentum > 0")


def _warmup(key: str, training: Training, epochs: int) -> Iterator[Problem]:
    if training.warmup_epochs >= epochs:
        yield Problem(f"{key}.warmup_epochs", f"must be < the {epochs} epochs of the training, got {training.warmup_epochs:g}")


def _idle_training(key: str, training: Training) -> Iterator[str]:
    default = Training()
    if training.optimizer != "sgd":
        for field in ("momentum", "nesterov"):
            if getattr(training, field) != getattr(default, field):
                yield f"{key}.{field} has no effect with optimizer: {training.optimizer}"
    if training.schedule == "one_cycle" and training.warmup_epochs:
        yield f"{key}.warmup_epochs has no effect with schedule: one_cycle, which includes a warm-up"
    if training.schedule != "step":
        for field in ("milestones", "gamma"):
            if getattr(training, field) != getattr(default, field):
                yield f"{key}.{field} has no effect with schedule: {training.schedule}"
