"""The teachers of a sweep made ready for its trials: defined, started, measured, with a delivery mode for each kind."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse import methods, tasks
from stillhouse.data.datasets import ImageData
from stillhouse.distill.sources import Reading
from stillhouse.errors import StillhouseError
from stillhouse.knowledge.kinds import logits
from stillhouse.knowledge.number_format import check_range
from stillhouse.models.blueprint import blueprint
from stillhouse.models.given_weights import local_weights
from stillhouse.models.registry import with_data_options
from stillhouse.spec.controls import all_teachers, teacher_spec
from stillhouse.spec.metric import ACCURACY, Metric
from stillhouse.spec.records import KnowledgeFacts, StudentChoice, TeacherFacts, Trial, is_untrained
from stillhouse.spec.schema import SweepSpec
from stillhouse.spec.training import Training
from stillhouse.sweep.cluster.cluster import Cluster
from stillhouse.sweep.cluster.teacher_actors import RunningTeacher, call_actor, request_ahead
from stillhouse.sweep.planning.knowledge_demand import KnowledgeDemand, plan_demand, stored_form_of_logits
from stillhouse.sweep.planning.store_quota import StoreQuota
from stillhouse.sweep.run_context import RunContext
from stillhouse.teachers.definition import TeacherDefinition
from stillhouse.teachers.delivery_choice import DeliveryChoice, choose_calling_mode
from stillhouse.teachers.given_checks import check_outputs
from stillhouse.teachers.library import TeacherLibrary
from stillhouse.teachers.own_normalisation import is_stated, own_normalisation, with_own_size
from stillhouse.teachers.ticket import FillPlan, TeacherTicket
from stillhouse.tracking import fetch_weights

_MLFLOW = "mlflow:"


@dataclass
class ReadyTeacher:
    """A loaded teacher with everything that trials and the report need of it.

    Attributes:
        outputs: the file with its outputs on the validation and test splits, where the task finds evidence in them.
    """

    running: RunningTeacher
    ticket: TeacherTicket
    facts: TeacherFacts
    outputs: str = ""

    @property
    def network(self) -> StudentChoice:
        """Its model as latency measurements name it."""
        definition = self.ticket.definition
        return StudentChoice(name=definition.name, model=definition.model, options=dict(definition.options))


def teacher_definition(name: str, spec: SweepSpec, data: ImageData, home: Path) -> TeacherDefinition:
    """The teacher as the spec describes it. Weights that MLflow stores are fetched into the home.

    Raises:
        UsageError: MLflow has no such weights.
    """
    teacher, untrained = with_own_size(teacher_spec(spec, name), data.input_shape), is_untrained(name)
    weights = None if untrained else teacher.weights
    if weights is not None and weights.startswith(_MLFLOW):
        weights = str(fetch_weights(weights.removeprefix(_MLFLOW), spec.tracking.uri, home=home))
    elif weights is not None:
        weights = local_weights(weights)
    # An untrained network expects no normalisation of its own: it sees that of the data set.
    expecting = teacher.model_copy(update={"normalization": None, "weights": None, "head": None}) if untrained else teacher
    own = own_normalisation(expecting, data, weights)
    recipe = teacher.train.model_dump(exclude={"epochs", "seed"})
    return TeacherDefinition(
        name=name,
        model=teacher.model,
        options=with_data_options(teacher.model, teacher.options, data.model_options),
        weights=weights,
        rename={} if untrained else teacher.rename,
        head=None if untrained else teacher.head,
        training=Training.model_validate(recipe),
        epochs=teacher.train.epochs,
        seed=teacher.train.seed,
        num_classes=data.num_classes,
        input_shape=data.input_shape,
        task=data.task,
        normalisation=own,
        normalisation_is_stated=is_stated(expecting, data, weights),
        untrained=untrained,
    )


def definition_in(context: RunContext, name: str) -> TeacherDefinition:
    """`teacher_definition`, resolved once in a run."""
    if name not in context.definitions:
        context.definitions[name] = teacher_definition(name, context.spec, context.data, context.sweep_home.home)
    return context.definitions[name]


def known_teachers(context: RunContext) -> dict[str, str]:
    """The identities, as `TeacherFacts.identity`, of the teachers that are known without training, by name.

    A teacher whose weights cannot be read now is missing, with a note: a sweep that has everything does not need it.
    """
    library, known = TeacherLibrary(context.sweep_home.home / "teachers"), {}
    for name in all_teachers(context.spec):
        try:
            definition = definition_in(context, name)
            content = library.content(definition, context.data, context.views)
        except StillhouseError as error:
            context.progress.note(f"teacher {name} cannot be compared with the one that taught earlier trials: {error}")
            continue
        if content is not None:
            known[name] = f"{content} {definition.normalization}".rstrip()
    return known


def start_teachers(cluster: Cluster, context: RunContext) -> dict[str, ReadyTeacher]:
    """Starts every teacher that a trial needs, and decides the delivery mode of each kind of its knowledge.

    Raises:
        UsageError: weights that cannot be read or do not fit; outputs that methods must not read; knowledge that cannot be
            delivered as the spec wants.
        InfrastructureError: a teacher's actor cannot be placed or keeps dying, or a disk is full.
    """
    spec, data, views = context.spec, context.data, context.views
    demand = plan_demand(context.plan, data)
    sources = {planned.student.derived_from for planned in context.plan.students}
    definitions = [definition_in(context, name) for name in all_teachers(spec) if name in demand or name in sources]
    calling = {
        name
        for trial in context.plan.representative_trials
        if methods.find(trial.method).calls_teacher
        for name in trial.teachers
    }
    ready = {}
    quota = StoreQuota(spec.knowledge, context.sweep_home.home)
    for running in cluster.start_teachers(definitions, data, views):
        name = running.definition.name
        kinds = demand.get(name, {})
        if not any(context.sweep_home.ledger.keys()):
            # A sweep that began with an earlier release, which only warned, may be completed.
            read = [each.kind for each in kinds.values()] + ([logits()] if name in calling else [])
            check_outputs(name, running.facts.get("unfit_outputs", ""), read)
        measured = call_actor(running.handle, "measure", [each.kind for each in kinds.values()])
        choices = quota.choose(kinds, measured, running.facts["base"], views.num_samples)
        for key, choice in choices.items():
            if choice.mode == "cached":
                check_range(measured["largest"][key], spec.knowledge.dtype, str(kinds[key].kind))
        calls = _choose_for_calls(running, spec)
        explained = {str(kinds[key].kind): choice for key, choice in choices.items()}
        if name in calling:
            explained["calls"] = calls
        if definition_in(context, name).normalisation is not None:
            context.progress.note(f"teacher {name}: its own normalisation, {definition_in(context, name).normalization}")
        for doubt in running.facts["doubts"]:
            context.progress.note(doubt)
        for what, choice in explained.items():
            context.progress.note(f"teacher {name}: {what} {choice.mode}: {choice.reason}")
        ready[name] = ReadyTeacher(
            running,
            _ticket(running, cluster, spec, kinds, choices, calls),
            _facts(running, explained, context.plan.metric),
            call_actor(running.handle, "store_outputs") if tasks.of(data).measures else "",
        )
    quota.check_forced()
    if removed := quota.evict():
        size = sum(entry["bytes"] for entry in removed)
        context.progress.note(f"removed the {len(removed)} least recently used sealed views, {size / 1e6:.1f} MB")
    return ready


def start_filling(teachers: Iterable[ReadyTeacher], context: RunContext) -> None:
    """Lets the teachers fill the views that trials will read, in that order; nothing waits for it.

    Which trials read those of an untrained teacher is known after the search, so they are filled when a trial opens them.
    """
    ahead = planned_views(context.plan.representative_trials, context)
    for teacher in teachers:
        if teacher.facts.untrained:
            continue
        request_ahead(teacher.running, ahead, teacher.ticket.plan, context.spec.name)


def planned_views(trials: Iterable[Trial], context: RunContext) -> dict[int, Reading]:
    """The views that trials will read, in the order in which they will, and the (seed, epoch) that reads each first."""
    views = context.views
    seen: dict[int, Reading] = {}
    for seed, epochs in dict.fromkeys((trial.seed, trial.epochs) for trial in trials):
        for epoch, view in enumerate(views.order(seed)[:epochs]):
            seen.setdefault(int(view), (seed, epoch))
    return seen


def trained_teacher(running: RunningTeacher, metric: Metric) -> dict[str, Any]:
    """What `stillhouse teachers train` reports of a teacher."""
    facts = running.facts
    return {
        "name": running.definition.name,
        "model": running.definition.model,
        "key": facts["key"],
        "weights": facts["weights_path"],
        metric.column("validation"): facts["validation_value"],
        "train_seconds": facts["train_seconds"],
        "trained_now": facts["trained_now"],
    }


def _ticket(
    running: RunningTeacher,
    cluster: Cluster,
    spec: SweepSpec,
    kinds: Mapping[str, KnowledgeDemand],
    choices: Mapping[str, DeliveryChoice],
    calls: DeliveryChoice,
) -> TeacherTicket:
    cached = [(each.kind, each.views) for key, each in kinds.items() if choices[key].mode == "cached"]
    return running.ticket(
        home=cluster.home,
        sweep=spec.name,
        modes={key: choice.mode for key, choice in choices.items()},
        calling_mode=calls.mode,
        plan=FillPlan.make(cached),
        top_k=stored_form_of_logits(spec.knowledge),
    )


def _choose_for_calls(running: RunningTeacher, spec: SweepSpec) -> DeliveryChoice:
    """The delivery mode for methods that call the teacher on inputs that they generate."""
    return choose_calling_mode(
        requested=spec.knowledge.way,
        teacher_on_gpu=running.facts["device"] != "cpu",
        trials_on_gpu=spec.trial_resources.gpu > 0,
    )


def _facts(running: RunningTeacher, choices: Mapping[str, DeliveryChoice], metric: Metric) -> TeacherFacts:
    definition, known = running.definition, running.facts
    size = blueprint(definition.model, definition.options, definition.num_classes, definition.input_shape).size
    kinds = [KnowledgeFacts(kind=kind, mode=choice.mode, reason=choice.reason) for kind, choice in choices.items()]
    facts = TeacherFacts(
        name=definition.name,
        model=definition.model,
        key=known["weights_hash"],
        parameters=size.parameters,
        size_bytes=size.size_bytes,
        macs=size.macs,
        way="+".join(sorted({choice.mode for choice in choices.values()})),
        reason="; ".join(map(str, kinds)),
        kinds=kinds,
        seconds_per_sample=known["seconds_per_sample"],
        train_seconds=known["train_seconds"],
        trained_now=known["trained_now"],
        normalization=definition.normalization,
        doubts=known["doubts"],
    )
    # The test split too: a teacher is a fixed network, nothing is chosen by its value.
    values = {metric.column("test"): call_actor(running.handle, "evaluate", "test")}
    if known["validation_value"] is not None:
        values[metric.column("validation")] = known["validation_value"]
    return facts.model_copy(update=values if metric == ACCURACY else {"metrics": values})
