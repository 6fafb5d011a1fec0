"""The weights with which students start, put into the home before the first trial."""

from pathlib import Path

from stillhouse.models.given_weights import read_start
from stillhouse.models.weights import save_state, state_hash
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.execution.trial_environment import StartFile


def prepare_starts(spec: SweepSpec, home: Path) -> dict[str, StartFile]:
    """The start of each student that has one, by name; a file that is replaced later does not change the sweep's trials.

    Raises:
        UsageError: weights cannot be read.
        InfrastructureError: a download fails.
        OSError: the home cannot be written.
    """
    starts = {}
    for student in spec.students:
        if student.start:
            state = read_start(student.start)
            digest = state_hash(state)
            path = home / "given" / f"{digest}.safetensors"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                save_state(state, path)
            starts[student.name] = StartFile(path=str(path), weights_hash=digest)
    return starts
