"""What all trials of a sweep share, as plain data that is sent to each worker once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stillhouse.data.views import Views
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.node_home import NodeHome, node_home
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import Basis, Trial
from stillhouse.spec.teacher_comparison import against_teacher
from stillhouse.spec.training import Training
from stillhouse.teachers.ticket import TeacherTicket

CHECKPOINT_INTERVAL_S = 5.0


@dataclass(frozen=True, kw_only=True)
class TeacherScore:
    """The teacher's values that a student is compared with.

    Attributes:
        test_value: of the task's metric on the test split.
        identity: of the network, as `TeacherFacts.identity`.
    """

    parameters: int
    test_value: float
    identity: str = ""


@dataclass(frozen=True, kw_only=True)
class TrialEnvironment:
    """What all trials of a sweep share. Plain data, sent to each worker once.

    Attributes:
        folder: the sweep's absolute folder.
        home: which contains the folder; None where every process can access it.
        latencies: the measured latency metrics, by `student_key`.
        evaluation: what the values on the test split depend on besides the student, as `evaluation_identity`.
        checkpoint_interval_s: the shortest time between two checkpoints of a trial.
        threads: for each worker of a trial.
        workers: how many processes train each student.
        gpu_share: the share of one GPU for each of them; 0 for none.
    """

    folder: str
    views: Views
    training: Training
    tickets: Mapping[str, TeacherTicket] = field(default_factory=dict)
    teachers: Mapping[str, TeacherScore] = field(default_factory=dict)
    latencies: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    evaluation: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    workers: int = 1
    gpu_share: float = 0.0
    import_paths: tuple[str, ...] = ()
    method_folders: tuple[str, ...] = ()
    checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S
    home: HomeAddress | None = None

    def basis(self, trial: Trial, given: str = "") -> Basis:
        """What the record of a trial depends on besides its key.

        Args:
            given: the `given_content` of its student.
        """
        known = {name: score.identity for name, score in self.teachers.items()}
        return Basis(**self.evaluation, teachers=[known.get(name, "") for name in trial.teachers], given=given)

    def against_teachers(self, metrics: Mapping[str, float], trial: Trial, metric: Metric) -> dict[str, float]:
        """`against_teacher` for the metrics of a finished trial and the best of its teachers; empty without a teacher."""
        scores = [self.teachers[name] for name in trial.teachers]
        if not scores:
            return {}
        best = max(scores, key=lambda each: metric.sign * each.test_value)
        return against_teacher(metrics, metric, parameters=best.parameters, score=best.test_value)

    @property
    def own_home(self) -> NodeHome:
        """The home, as this process accesses it."""
        return node_home(self.home or HomeAddress(path=self.folder))
