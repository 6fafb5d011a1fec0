"""A sweep from its spec to its results: the public face of the package."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from stillhouse.data.datasets import ImageData
from stillhouse.errors import Interrupted, SpecError, UsageError
from stillhouse.spec.load import draft_of, in_recipe, spec_to_dict
from stillhouse.spec.metric import Metric
from stillhouse.spec.recipes import recipe_of
from stillhouse.spec.schema import SweepSpec, find_code_in
from stillhouse.sweep.display_tables import rows_as_html, rows_as_text, sweep_rows
from stillhouse.sweep.failures import (
    check_folder,
    check_teacher_folders,
    folder_errors,
    interrupted_message,
    stored_message,
    user_errors,
)
from stillhouse.sweep.home.status import publish_status
from stillhouse.sweep.home.sweep_home import TRIALS_PER_METHOD, SweepHome, extended_spec, find_sweep, resolve_home
from stillhouse.sweep.moved_paths import check_moved, check_same_data, moved_paths, with_overrides, with_paths_of
from stillhouse.sweep.planning.first_release import teachers_as_begun, with_teachers_as_begun, without_key
from stillhouse.sweep.planning.plan import Plan, make_plan
from stillhouse.sweep.planning.spec_check import check, check_file, metric_of
from stillhouse.sweep.planning.trial_keys import make_views
from stillhouse.sweep.progress import Progress, in_notebook
from stillhouse.sweep.shutdown import ShutdownRequest
from stillhouse.sweep.sweep_data import load_sweep_data

if TYPE_CHECKING:
    from stillhouse.sweep.preview.standing import Standing
    from stillhouse.sweep.results.results import Results
    from stillhouse.sweep.run_context import RunContext

# A plan is shown without Ray, MLflow and what draws figures: what only a run needs is imported when it begins.

VERIFIED_PAIRS = 1024


class Sweep:
    """One sweep.

    Args:
        spec: a validated spec.
        home: the folder that stores sweeps, teachers and knowledge; see `resolve_home`.
        address: of a Ray cluster; None starts Ray on this machine.
        command: the command line that started the sweep, for the report.
        progress: shows events; True shows them on stderr, None only in a notebook, and False shows nothing.
    """

    def __init__(
        self,
        spec: SweepSpec,
        *,
        home: str | Path | None = None,
        address: str | None = None,
        command: str = "",
        progress: Progress | bool | None = None,
    ) -> None:
        self.sweep_home = SweepHome(resolve_home(home), spec.name)
        self.spec = _in_recipe_of(self.sweep_home, spec)
        self._address = address
        self._command = command
        if not isinstance(progress, Progress):
            progress = Progress(spec.name, quiet=not (in_notebook() if progress is None else progress))
        self._progress = progress
        self._data: ImageData | None = None
        self._plan: Plan | None = None
        self._may_change: frozenset[str] = frozenset()
        self._origin: SweepHome | None = None
        self._shutdown = ShutdownRequest(
            self.sweep_home.stop_request,
            last_words=interrupted_message(self.sweep_home),
            remedy=stored_message(self.sweep_home),
            tell=self._progress.note,
        )

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = (), **options: Any) -> Self:
        """The sweep that a YAML file describes, with `key=value` overrides; options as for `Sweep`.

        Raises:
            SpecError: with every problem of the spec.
        """
        return cls(check_file(path, overrides), **options)

    @classmethod
    def named(cls, name: str, *, home: str | Path | None = None, overrides: Sequence[str] = (), **options: Any) -> Self:
        """The sweep that was started before under this name.

        Args:
            overrides: `KEY=VALUE` for keys that may change, such as `dataset.root=/new/place` of the same data.

        Raises:
            UsageError: there is none.
        """
        sweep_home = find_sweep(resolve_home(home), name)
        stored = with_overrides(sweep_home.read_spec_dict(), overrides)
        return cls(_checked(stored), home=sweep_home.home, **options)

    @classmethod
    def extended(
        cls,
        name: str,
        trials_per_method: int,
        *,
        home: str | Path | None = None,
        overrides: Sequence[str] = (),
        **options: Any,
    ) -> Self:
        """The sweep that was started before under this name, with more trials of each method; overrides as for `named`.

        Raises:
            UsageError: there is none, its algorithm has no number of trials, or it has more than that already.
        """
        sweep_home = find_sweep(resolve_home(home), name)
        stored = with_overrides(sweep_home.read_spec_dict(), overrides)
        sweep = cls(_checked(extended_spec(stored, trials_per_method)), home=sweep_home.home, **options)
        sweep._may_change = frozenset({TRIALS_PER_METHOD})
        return sweep

    @classmethod
    def forked(cls, spec: SweepSpec, name: str, *, home: str | Path | None = None, **options: Any) -> Self:
        """A sweep called `name` that reuses the matching trials of the sweep that `spec` names.

        Raises:
            UsageError: there is no such sweep, or `name` is its own name.
            SpecError: `name` is not valid for a sweep.
        """
        origin = find_sweep(resolve_home(home), spec.name)
        if name == spec.name:
            raise UsageError(f"--fork must be another name than that of the sweep, got '{name}'")
        spec = _in_recipe_of(origin, spec)
        sweep = cls(check({**spec_to_dict(spec, secrets=True), "name": name}), home=origin.home, **options)
        sweep._origin = origin
        return sweep

    def __repr__(self) -> str:
        return rows_as_text(sweep_rows(self.spec, self.sweep_home))

    def _repr_html_(self) -> str:
        return rows_as_html(sweep_rows(self.spec, self.sweep_home))

    def data(self) -> ImageData:
        """The data set, loaded once.

        Raises:
            UsageError: its files are missing or damaged.
        """
        if self._data is None:
            self._data = load_sweep_data(self.spec, self.sweep_home.home, download=self.spec.dataset.download)
        return self._data

    @property
    def metric(self) -> Metric:
        """What the task of the data set judges its models by."""
        return metric_of(self.data())

    def plan(self) -> Plan:
        """The trials that the spec implies.

        Raises:
            SpecError: with every problem of the spec.
        """
        if self._plan is None:
            self._plan = make_plan(with_teachers_as_begun(self.spec, self._as_begun()), self.data())
        return self._plan

    def standing(self) -> "Standing | None":
        """How far the sweep is: what is done, what runs again and why, and what is left; None if it has not run.

        Nothing is written or started.

        Raises:
            SpecError: with every problem of the spec.
        """
        if next(iter(self.sweep_home.ledger.keys()), None) is None:
            return None
        from stillhouse.sweep.preview.standing import find_standing

        return find_standing(self._context())

    def run(self, *, again: Collection[str] = ()) -> "Results":
        """Runs what the ledger lacks, writes report and tracking, and returns the results.

        In the main thread it handles Ctrl-C and SIGTERM: the first ends it gracefully, the second at once.

        Args:
            again: statuses (`failed`, `stopped`) whose records are set aside first, so that their trials run again.

        Raises:
            SpecError, UsageError: before anything starts.
            InfrastructureError: the cluster, the disk or a teacher failed; finished trials are stored.
            Interrupted: by Ctrl-C, SIGTERM or `stillhouse stop`; finished trials are stored.
        """
        started = time.perf_counter()
        from stillhouse.sweep.run import run_sweep

        with self._progress, user_errors(self.sweep_home):
            context = self._context()
            # Another process that sees the lock may request the sweep to end.
            with self.sweep_home.locked(), self._shutdown:
                check_folder(self.sweep_home)
                self._prepare_judge()
                kept = self._as_begun()
                spec = without_key(spec_to_dict(context.spec, secrets=True), kept)

                self._check_moved(context, spec)
                self.sweep_home.write_spec(
                    spec,
                    may_change=self._may_change,
                    complete=lambda stored: without_key(_with_defaults(with_paths_of(stored, spec)), kept),
                )
                with folder_errors(self.sweep_home), publish_status(self._progress, self.sweep_home):
                    return run_sweep(context, started=started, again=again, origin=self._origin, command=self._command)

    def verify(self, pairs: int = VERIFIED_PAIRS) -> dict[str, Any]:
        """Recomputes a random sample of the sealed knowledge of this sweep and compares it with what is stored.

        Args:
            pairs: (view, sample) pairs of each teacher; the same ones for the same `search.seed`.

        Returns:
            `compared`, and `differences` with the `teacher` and what `verify_sealed` reports of each; a view that differs is
            removed.
        """
        from stillhouse.sweep.cluster.teacher_actors import call_actor
        from stillhouse.sweep.planning.knowledge_demand import plan_demand
        from stillhouse.sweep.teacher_setup import teacher_definition

        context = self._context()
        check_same_data(self.sweep_home.name, self.sweep_home.read_facts(), context.data)
        demand = plan_demand(context.plan, context.data)
        names = [name for name in context.spec.teachers if demand.get(name)]
        definitions = [teacher_definition(name, context.spec, context.data, self.sweep_home.home) for name in names]
        compared, differences = 0, []
        if definitions:
            self._prepare_judge()
            with self._progress, context.connect() as cluster:
                cluster.share(context.data)
                for running in cluster.start_teachers(definitions, context.data, context.views):
                    name = running.definition.name
                    kinds = [each.kind for each in demand[name].values()]
                    found = call_actor(running.handle, "verify", kinds, pairs, context.spec.search.seed)
                    compared += found["compared"]
                    differences += [{"teacher": name, **each} for each in found["differences"]]
        return {"compared": compared, "differences": differences}

    def train_teachers(self) -> list[dict[str, Any]]:
        """Trains or loads the spec's teachers, and fills no view.

        Returns:
            of each teacher its `name`, `model`, `key`, `weights` (a path), the task's metric on the validation split
            (`validation_accuracy`), `train_seconds` and whether it was `trained_now`.

        Raises:
            UsageError: the spec has no teachers; weights that cannot be read or do not fit.
            InfrastructureError: as for `run`.
            Interrupted: after the current epoch; the same command continues from there.
        """
        from stillhouse.sweep.cluster.cluster import Cluster
        from stillhouse.sweep.teacher_setup import teacher_definition, trained_teacher

        if not self.spec.teachers:
            raise UsageError("the spec has no teachers; name one under teachers, such as {big: {model: resnet56}}")
        home, data = self.sweep_home.home, self.data()
        definitions = [teacher_definition(name, self.spec, data, home) for name in self.spec.teachers]
        home.mkdir(parents=True, exist_ok=True)
        check_teacher_folders(home)
        self._shutdown.remedy = "the same command continues the training"
        try:
            with (
                self._progress,
                self._shutdown,
                Cluster(
                    self.spec, address=self._address, home=home, progress=self._progress, shutdown=self._shutdown
                ) as cluster,
            ):
                self._prepare_judge()
                cluster.share(data)
                teachers = cluster.start_teachers(definitions, data, make_views(self.spec, data))
                return [trained_teacher(running, self.metric) for running in teachers]
        except (KeyboardInterrupt, Interrupted) as interrupt:
            raise Interrupted("interrupted; the same command continues the training") from interrupt

    def _check_moved(self, context: "RunContext", spec: dict[str, Any]) -> None:
        """Checks data and weights that are at another path than when the sweep began.

        Raises:
            UsageError: their content is not the same.
        """
        moved = moved_paths(self.sweep_home.spec_as_begun(), spec)
        records = self.sweep_home.read_records() if moved else []
        if records:
            check_moved(
                moved,
                sweep=self.spec.name,
                keys=context.plan.keys,
                data=context.data,
                facts=self.sweep_home.read_facts(),
                records=records,
            )

    def _prepare_judge(self) -> None:
        """Trains or finds what the task's metric needs, before any model is judged."""
        from stillhouse.teachers import judges
        from stillhouse.teachers.library import TeacherLibrary

        judges.prepare(
            self.data(),
            TeacherLibrary(self.sweep_home.home / "teachers"),
            progress=self._progress.note,
            ending=lambda: self._shutdown.requested,
        )

    def _as_begun(self) -> frozenset[str]:
        """The teachers that keep the normalisation with which an earlier release began the sweep."""
        return teachers_as_begun(self.spec, self.sweep_home.spec_as_begun())

    def _context(self) -> "RunContext":
        from stillhouse.sweep.run_context import RunContext

        return RunContext(
            plan=self.plan(),
            data=self.data(),
            sweep_home=self.sweep_home,
            progress=self._progress,
            shutdown=self._shutdown,
            address=self._address,
        )


def _in_recipe_of(sweep_home: SweepHome, spec: SweepSpec) -> SweepSpec:
    """The spec with the training defaults with which the sweep of this folder began, if it did."""
    stored = sweep_home.spec_as_begun()
    return spec if stored is None else in_recipe(spec, recipe_of(stored))


def _checked(stored: dict[str, Any]) -> SweepSpec:
    """A stored spec, checked. User-defined code that it names is found in the working folder."""
    draft = draft_of(stored)
    if draft.spec is not None:
        find_code_in(Path.cwd(), draft.spec)
    return check(draft)


def _with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored spec with the defaults of keys that were added later; unchanged if it cannot be read any more."""
    try:
        return spec_to_dict(check(draft_of(stored)), secrets=True)
    except SpecError:
        return stored
