"""Which packed worker a trial goes to."""

from stillhouse.sweep.cluster.packed_workers import Places


def test_a_trial_goes_to_the_worker_with_the_fewest_trials() -> None:
    places = Places(2)
    assert [places.take(name) for name in "abcd"] == [0, 1, 0, 1]
    places.leave("b")
    places.leave("d")
    assert [places.take(name) for name in "efg"] == [1, 1, 0]


def test_a_trial_that_has_no_place_leaves_none() -> None:
    places = Places(1)
    places.leave("unknown")
    assert places.take("a") == 0
