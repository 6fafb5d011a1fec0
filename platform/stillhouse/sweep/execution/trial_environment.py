"""What all trials of a sweep share, as plain data that is sent to each worker once."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stillhouse.data.views import Views
from stillhouse.errors import InfrastructureError
from stillhouse.home_access.home_address import HomeAddress
from stillhouse.home_access.node_home import NodeHome, node_home
from stillhouse.models.weights import state_hash
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import Basis, Trial
from stillhouse.spec.teacher_comparison import against_teacher
from stillhouse.spec.training import Training
from stillhouse.tasks import SplitOutputs
from stillhouse.teachers.stored_outputs import outputs_here
from stillhouse.teachers.ticket import TeacherTicket

CHECKPOINT_INTERVAL_S = 5.0


@dataclass(frozen=True, kw_only=True)
class TeacherScore:
    """The teacher's values that a student is compared with.

    Attributes:
        test_value: of the task's metric on the test split.
        identity: of the network, as `TeacherFacts.identity`.
        outputs: the file with its outputs on the validation and test splits, as the driver sees it; empty where the task
            finds no evidence in them.
    """

    parameters: int
    test_value: float
    identity: str = ""
    outputs: str = ""


@dataclass(frozen=True, kw_only=True)
class StartFile:
    """The weights with which a student starts, under the names of its model.

    Attributes:
        path: in the home, as the driver sees it.
        weights_hash: of its content, as `state_hash`.
    """

    path: str
    weights_hash: str


@dataclass(frozen=True, kw_only=True)
class TrialEnvironment:
    """What all trials of a sweep share. Plain data, sent to each worker once.

    Attributes:
        folder: the sweep's absolute folder.
        home: which contains the folder; None where every process can access it.
        latencies: the measured latency metrics, by `student_key`.
        starts: the weights of students that start with given ones, by the student's name.
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
    starts: Mapping[str, StartFile] = field(default_factory=dict)
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
        return Basis(
            **self.evaluation,
            teachers=[known.get(name, "") for name in trial.teachers],
            given=given,
            source=known.get(trial.student.derived_from or "", ""),
        )

    def against_teachers(self, metrics: Mapping[str, float], trial: Trial, metric: Metric) -> dict[str, float]:
        """`against_teacher` for the metrics of a finished trial and the best of its teachers; empty without a teacher."""
        if not trial.teachers:
            return {}
        best = self._best_teacher(trial.teachers, metric)
        return against_teacher(metrics, metric, parameters=best.parameters, score=best.test_value)

    def teacher_outputs(self, trial: Trial, metric: Metric) -> SplitOutputs | None:
        """On the test split: of the best of the trial's teachers, or of the sweep's for a student that learned alone.

        Raises:
            InfrastructureError: they cannot be read.
        """
        if not self.teachers:
            return None
        best = self._best_teacher(trial.teachers or tuple(self.teachers), metric)
        return outputs_here(best.outputs, self.own_home, "test") if best.outputs else None

    def _best_teacher(self, names: Iterable[str], metric: Metric) -> TeacherScore:
        return max((self.teachers[name] for name in names), key=lambda each: metric.sign * each.test_value)

    def start_weights(self, student: str) -> dict[str, Tensor]:
        """The weights with which a student starts, copied from the home if necessary.

        Raises:
            InfrastructureError: neither this node nor the home has them.
        """
        start, home = self.starts[student], self.own_home
        path = home.here(start.path)
        for attempt in range(2):
            with suppress(OSError, SafetensorError):
                state = load_file(path)
                if state_hash(state) == start.weights_hash:
                    return state
            if attempt == 0:
                home.pull(path)
        raise InfrastructureError(f"{path} lacks the weights with which student '{student}' starts; run the same command again")

    @property
    def own_home(self) -> NodeHome:
        """The home, as this process accesses it."""
        return node_home(self.home or HomeAddress(path=self.folder))
