"""MLflow: one parent run per sweep, one child run per trial, written by one thread of the driver.

The store's content is a view of the ledger and can always be written again (`sync`).

* Parent: tags `sweep`, `role=sweep`, `home_id`; summary and teacher numbers as metrics; spec and report as artifacts.
* Child: tags `sweep`, `role=trial`, `trial_key`, `method`, `student`, `teacher`, `seed`, `phase`, `status`; the
  hyper-parameters and student options as params.
* The end state is metrics at step 0 (the task's metric such as `test_accuracy`, `parameters`, `latency_ms`, ...), which a
  scatter chart plots. Curves have other names, `epoch_<name>` at step = epoch: with one name for both, charts would show
  the value of the last epoch.

MLflow is imported when a store is opened, not before: the import takes seconds.
"""

from stillhouse.tracking.locations import Location, locate
from stillhouse.tracking.models import (
    ModelAlias,
    RegisteredStudent,
    StoredStudents,
    TrainedStudent,
    parse_registration,
    register_student,
    store_students,
)
from stillhouse.tracking.replay import SyncResult, sync
from stillhouse.tracking.server import ui
from stillhouse.tracking.tracker import Tracker
from stillhouse.tracking.weights import fetch_weights

__all__ = [
    "Location",
    "ModelAlias",
    "RegisteredStudent",
    "StoredStudents",
    "SyncResult",
    "Tracker",
    "TrainedStudent",
    "fetch_weights",
    "locate",
    "parse_registration",
    "register_student",
    "store_students",
    "sync",
    "ui",
]
