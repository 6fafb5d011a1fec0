"""Every method for classification goes through a real sweep: shared teacher, sealed views, Ray."""

from pathlib import Path

import pytest

from stillhouse import methods
from stillhouse.spec.load import validate
from stillhouse.sweep.sweep import Sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPEC = {
    "name": "every-method",
    "dataset": {"name": "digits", "validation": 100, "options": {"limit": 300, "limit_test": 100}},
    "views": {"policy": ["crop"], "count": 2},
    "teachers": {"big": {"model": "resnet8", "width": 0.5, "train": {"epochs": 2}}},
    "students": [{"model": "resnet8", "width": 0.25}],
    # A grid without choices is every method once, at its defaults.
    "search": {"algorithm": "grid", "max_epochs": 4},
    "training": {"batch_size": 50, "optimizer": "sgd"},  # one method splits the momentum of SGD
    # Nobody listens there, which costs a sweep nothing.
    "tracking": {"uri": "http://127.0.0.1:9"},
}


def test_every_method_finishes_in_a_sweep_with_one_pass_of_the_teacher_per_view(tmp_path: Path) -> None:
    shipped = [name for name in methods.names() if methods.find(name).__module__.startswith(methods.__name__)]
    names = [name for name in shipped if methods.find(name).shortened().serves("classification")]
    chosen = {name: dict(methods.find(name).brief) or "defaults" for name in names}
    results = Sweep(validate({**SPEC, "methods": chosen}), home=tmp_path).run()
    assert {record.trial.method: record.reason for record in results.records if record.status != "finished"} == {}
    assert {record.trial.method for record in results.records} == set(names)
    assert results.forwarded == {"big": 2 * 200}
