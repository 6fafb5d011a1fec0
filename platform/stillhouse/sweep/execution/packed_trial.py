"""The Trainable of a packed trial: it trains nothing itself, and passes Tune's calls to a `PackedWorker`."""

from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError

from stillhouse.errors import InfrastructureError
from stillhouse.sweep.execution.trainable import TRIAL_CONFIG, key_of

PLACE_CONFIG = "packed worker"
"""The number of the worker that runs the trial, in the configuration that Tune passes on."""


class PackedTrial(tune.Trainable):  # type: ignore[misc]  # ray is not typed
    """One trial of a packed worker, for Tune: started, stopped and restarted as any other.

    `workers` are the handles of all packed workers of the run.
    """

    _begun: bool

    def setup(self, config: dict[str, Any], workers: list[Any]) -> None:
        self._workers = workers
        self._adopt(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._adopt(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if not self._begun:
            self._call("begin", self._trial_json)
            self._begun = True
        result: dict[str, Any] = self._call("step")
        return result

    def cleanup(self) -> None:
        self._end()

    def _adopt(self, config: dict[str, Any]) -> None:
        self._trial_json: str = config[TRIAL_CONFIG]
        self._key = key_of(self._trial_json)
        self._worker = self._workers[config[PLACE_CONFIG]]
        self._begun = False

    def _end(self) -> None:
        if self._begun:
            self._begun = False
            self._call("end")

    def _call(self, method: str, *arguments: Any) -> Any:
        """The answer of the trial's worker.

        Raises:
            RayActorError: the worker's process died while it ran this trial.
            InfrastructureError: it died while it ran other trials, or an infrastructure failed this one.
        """
        try:
            return ray.get(getattr(self._worker, method).remote(self._key, *arguments))
        except RayActorError:
            suspects = ray.get(self._worker.suspects.remote())
            if suspects is None or self._key in suspects:
                raise
        # Without the death as its cause: Tune writes causes into the text by which deaths are counted.
        raise InfrastructureError("the process that this trial shares with others ended in another trial")
