"""What a sweep stores in MLflow in addition to its runs: the students of the Pareto front; and `stillhouse sync`."""

from functools import cache

from stillhouse import tasks
from stillhouse.data.datasets import ImageData
from stillhouse.models.exported_form import exported_form
from stillhouse.spec.records import TrialRecord
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.execution.stored_student import load_student
from stillhouse.sweep.results.results import Results
from stillhouse.sweep.results.trained_students import load_data, read_spec
from stillhouse.tracking import StoredStudents, SyncResult, TrainedStudent, store_students, sync

WEIGHTS_NAME = "student.safetensors"
_EXAMPLE_IMAGES = 2


def store_front(results: Results, spec: SweepSpec, data: ImageData | None = None) -> StoredStudents:
    """Stores the students of the front with weights, signature and input example, except those already stored.

    Args:
        spec: with the store's password, as `read_spec` gives it.
        data: of the sweep; loaded if it is None and a student must be stored.
    """

    @cache
    def images() -> ImageData:
        return data or load_data(results, spec)

    def load(record: TrialRecord) -> TrainedStudent:
        return trained_student(results, spec, record, images())

    return store_students(
        spec.tracking.uri,
        home=results.home,
        experiment=experiment_of(spec),
        sweep=spec.name,
        records=[record for record in front_records(results) if record.weights is not None],
        load=load,
    )


def front_records(results: Results) -> list[TrialRecord]:
    """The trials of the Pareto front, in its order."""
    by_key = {record.trial.key: record for record in results.records}
    return [by_key[str(key)] for key in results.pareto()["trial"]]


def trained_student(results: Results, spec: SweepSpec, record: TrialRecord, data: ImageData) -> TrainedStudent:
    """The network of a finished trial as MLflow stores it.

    Raises:
        UsageError: its weights are missing or damaged.
    """
    assert record.weights is not None
    return TrainedStudent(
        model=exported_form(load_student(results.sweep_home, spec, record, data)),
        example=tasks.of(data).first_inputs(data, data.for_checks, _EXAMPLE_IMAGES).numpy(),
        files={WEIGHTS_NAME: results.sweep_home.folder / record.weights},
    )


def experiment_of(spec: SweepSpec) -> str:
    """The MLflow experiment of the sweep."""
    return spec.tracking.experiment or spec.name


def sync_sweep(results: Results) -> tuple[SyncResult, StoredStudents]:
    """Makes MLflow hold what the ledger holds, with report and front; a second call changes nothing.

    Raises:
        InfrastructureError: the store cannot be opened, or the report cannot be written.
    """
    spec = read_spec(results.sweep_home)
    files = results.report(results.sweep_home.report)
    artifacts = {what: getattr(files, what) for what in ("page", "table", "figure", "csv")}
    best = results.best_numbers()
    done = sync(spec.tracking.uri, results.home, experiment_of(spec), results.facts, results.records, artifacts, best)
    if done.addresses and done.addresses != results.sweep_home.read_addresses():
        results.sweep_home.write_addresses(done.addresses)
        results.report(results.sweep_home.report)
    return done, store_front(results, spec)
