"""MLflow: one parent run per sweep, one child run per trial, written by one thread of the driver.

What stands in the store is a view of the ledger and can always be written again (`sync`).

* Parent: tags `sweep`, `role=sweep`, `home_id`; summary and teacher numbers as metrics; spec and report as artifacts.
* Child: tags `sweep`, `role=trial`, `trial_key`, `method`, `student`, `teacher`, `seed`, `phase`, `status`; the
  hyper-parameters and student options as params.
* The end state is metrics at step 0 (`test_accuracy`, `parameters`, `latency_ms`, ...), which is what a scatter chart
  plots. Curves have names of their own, `epoch_<name>` at step = epoch: one name for both would make the last epoch's
  value the one that charts show.

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
