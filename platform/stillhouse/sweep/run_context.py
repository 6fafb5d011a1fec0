"""What every step of one run of a sweep works with."""

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stillhouse.data.datasets import ImageData
from stillhouse.data.views import Views
from stillhouse.spec.schema import SweepSpec
from stillhouse.sweep.home.sweep_home import SweepHome
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.planning.trial_keys import make_views
from stillhouse.sweep.progress import Progress
from stillhouse.sweep.shutdown import ShutdownRequest
from stillhouse.teachers.definition import TeacherDefinition

if TYPE_CHECKING:
    from stillhouse.sweep.cluster.cluster import Cluster


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The plan of a sweep with everything that its run needs around it.

    Attributes:
        address: of a Ray cluster; None starts Ray on this machine.
        shutdown: whether the user requested the sweep to end.
        definitions: the teachers that were resolved, by name: a name that can move is resolved once in a run.
    """

    plan: Plan
    data: ImageData
    sweep_home: SweepHome
    progress: Progress
    shutdown: ShutdownRequest
    address: str | None = None
    definitions: dict[str, TeacherDefinition] = field(default_factory=dict)

    @property
    def spec(self) -> SweepSpec:
        """With every method and hyper-parameter spelled out."""
        return self.plan.spec

    @property
    def views(self) -> Views:
        """Those that all trials share."""
        return make_views(self.spec, self.data)

    def connect(self) -> "Cluster":
        """The sweep's connection to Ray; to be entered.

        Raises:
            InfrastructureError: as for `Cluster`.
        """
        # Ray, which a plan and the sentences about a failure do not need.
        from stillhouse.sweep.cluster.cluster import Cluster

        return Cluster(
            self.spec,
            address=self.address,
            home=self.sweep_home.home,
            progress=self.progress,
            shutdown=self.shutdown,
        )


def resume_command(sweep_home: SweepHome) -> str:
    """The command that continues the sweep."""
    return f"stillhouse resume {sweep_home.name} --home {shlex.quote(str(sweep_home.home))}"
