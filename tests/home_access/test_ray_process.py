"""Calls of an actor are repeated while it is lost, without a cluster."""

from collections.abc import Callable

import pytest
import ray
from ray.exceptions import RayActorError

from stillhouse.errors import InfrastructureError
from stillhouse.home_access.ray_process import NAMESPACE, NoActorError, find_actor, own_device, repeat_call


def fails(times: int, error: Exception) -> Callable[[], str]:
    """A call that raises the error so many times and then returns."""
    left = iter([error] * times)

    def call() -> str:
        for each in left:
            raise each
        return "answer"

    return call


@pytest.mark.parametrize("error", [RayActorError(), NoActorError("none")])
def test_a_call_is_repeated_until_the_actor_is_back(error: Exception) -> None:
    losses: list[int] = []
    call = fails(3, error)
    found = repeat_call(
        call, failure="lost", timeout_s=60, first_pause_s=0.001, longest_pause_s=0.002, on_loss=lambda: losses.append(1)
    )
    assert (found, len(losses)) == ("answer", 3)


def test_an_actor_that_does_not_come_back_is_an_error_of_the_cluster() -> None:
    with pytest.raises(InfrastructureError, match=r"^the keeper of /home is lost: none$"):
        repeat_call(
            fails(10**6, NoActorError("none")), failure="the keeper of /home is lost", timeout_s=0.02, longest_pause_s=0.01
        )


def test_an_error_of_the_call_itself_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="wrong view"):
        repeat_call(fails(1, ValueError("wrong view")), failure="lost", timeout_s=60, longest_pause_s=1)


def test_a_pause_doubles_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("stillhouse.home_access.ray_process.time.sleep", pauses.append)
    repeat_call(fails(5, NoActorError()), failure="lost", timeout_s=60, first_pause_s=1.0, longest_pause_s=5.0)
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_missing_name_is_distinguished_from_an_error_of_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def get_actor(name: str, namespace: str) -> object:
        asked.append((name, namespace))
        raise ValueError(f"Failed to look up actor '{name}'")

    monkeypatch.setattr(ray, "get_actor", get_actor)
    with pytest.raises(NoActorError, match="teacher-1"):
        find_actor("teacher-1")
    assert asked == [("teacher-1", NAMESPACE)]


@pytest.mark.parametrize(("gpus", "available", "device"), [([0], True, "cuda"), ([0], False, "cpu"), ([], True, "cpu")])
def test_a_process_uses_the_gpu_only_if_ray_gave_it_one(
    monkeypatch: pytest.MonkeyPatch, gpus: list[int], available: bool, device: str
) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: gpus)
    monkeypatch.setattr("stillhouse.home_access.ray_process.torch.cuda.is_available", lambda: available)
    assert own_device() == device
