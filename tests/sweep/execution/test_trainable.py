"""The trainable of Ray Tune; whole trials run in test_end_to_end."""

from collections.abc import Callable

from stillhouse.spec.records import Trial
from stillhouse.sweep.execution.trainable import key_of

MakeTrial = Callable[..., Trial]


def test_the_key_is_read_off_a_trials_json(make_trial: MakeTrial) -> None:
    assert key_of(make_trial("abc").model_dump_json()) == "abc"
