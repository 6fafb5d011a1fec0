"""Everything that a report is made of, computed once: page, figures, tables and answers only read it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from stillhouse.report.answers import Answer, answers
from stillhouse.report.axes import AXES
from stillhouse.report.configurations import Configuration, choice_labels, winners
from stillhouse.report.fronts import configuration_front, objective_front, sweep_configurations
from stillhouse.report.gains import Gain, gains, untrained_controls, untrained_gains
from stillhouse.report.links import web_addresses
from stillhouse.report.pareto import default_objectives
from stillhouse.report.plot_style import PlotStyle
from stillhouse.report.sensitivities import Sensitivity, sensitivities
from stillhouse.report.teacher_costs import TeacherCost, teacher_costs
from stillhouse.report.trials_table import TrialsTable, described_table
from stillhouse.spec.collapse import is_collapsed, trivial_value
from stillhouse.spec.metric import Metric
from stillhouse.spec.records import SweepFacts, TeacherFacts, TrialRecord
from stillhouse.spec.size_bound import Budget


@dataclass(frozen=True, kw_only=True)
class TradeoffData:
    """What the trade-off figures draw, of one sweep or of several that are compared.

    Attributes:
        winners: of every method and concrete student, the configuration that validation data choose.
        fronts: the winners on the Pareto front by each of `AXES`, smallest first.
        addresses: the web page of a trial's run, by trial key.
    """

    name: str
    metric: Metric
    configurations: tuple[Configuration, ...]
    winners: tuple[Configuration, ...]
    fronts: Mapping[str, tuple[Configuration, ...]]
    teachers: tuple[TeacherFacts, ...]
    style: PlotStyle
    addresses: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        metric: Metric,
        found: Sequence[Configuration],
        teachers: Sequence[TeacherFacts],
        style: PlotStyle,
        addresses: Mapping[str, str],
    ) -> Self:
        """Chooses winners and fronts among the configurations `found`."""
        best = winners(found)
        return cls(
            name=name,
            metric=metric,
            configurations=tuple(found),
            winners=tuple(best),
            fronts={axis: tuple(configuration_front(best, axis)) for axis in AXES},
            teachers=tuple(teacher for teacher in teachers if not teacher.untrained),
            style=style,
            addresses=addresses,
        )


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """One sweep, ready to be reported.

    Attributes:
        labels: of the concrete students, by `StudentChoice.variant`.
        table: one row per trial.
        tradeoff: configurations, winners and fronts.
        answers: to the budgets, or to the questions that every sweep answers.
        gains: of every method over the baseline.
        untrained_gains: of every method over itself with an untrained teacher; empty without the control `random_teacher`.
        front_trials: the reported trials of the students on the Pareto front by the sweep's objectives, by key.
        collapsed_trials: the finished trials whose students are no better than a model that ignores the image, by key.
        addresses: the web page of each trial's run by trial key, and of the sweep's by the empty key.
    """

    facts: SweepFacts
    records: tuple[TrialRecord, ...]
    labels: Mapping[str, str]
    table: TrialsTable
    tradeoff: TradeoffData
    answers: tuple[Answer, ...]
    gains: tuple[Gain, ...]
    untrained_gains: tuple[Gain, ...]
    front_trials: frozenset[str]
    collapsed_trials: frozenset[str]
    teacher_costs: tuple[TeacherCost, ...]
    sensitivities: tuple[Sensitivity, ...]
    addresses: Mapping[str, str]

    @property
    def metric(self) -> Metric:
        return self.facts.metric

    @classmethod
    def of(
        cls,
        facts: SweepFacts,
        records: Sequence[TrialRecord],
        budgets: Sequence[Budget] = (),
        addresses: Mapping[str, str] | None = None,
        *,
        sweep: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Self:
        """Computes everything from what is recorded of the sweep.

        Args:
            budgets: the sizes to answer for; without any, see `answers`.
            addresses: the web page of each trial's run by trial key, and of the sweep's by the empty key.
            sweep: the sweep's name where several are compared, noted with its configurations.
            labels: of the concrete students by `StudentChoice.variant`; by default those that `records` need.
        """
        metric, addresses = facts.metric, web_addresses(addresses or {})
        labels = choice_labels(records) if labels is None else labels
        found = sweep_configurations(facts, records, sweep=sweep, labels=labels)
        controls = sweep_configurations(facts, records, sweep=sweep, labels=labels, controls=True)
        style = PlotStyle.of(facts, records)
        tradeoff = TradeoffData.of(facts.name, metric, found, facts.teachers, style, addresses)
        untrained = untrained_controls(tradeoff.winners, controls)
        table = described_table(facts, records)
        objectives = {name: direction for name, direction in facts.objectives.items() if name in table.frame}
        front = objective_front(tradeoff.winners, table.frame, metric, objectives or default_objectives(metric))
        return cls(
            facts=facts,
            records=tuple(records),
            labels=labels,
            table=table,
            tradeoff=tradeoff,
            answers=tuple(answers(facts, tradeoff.winners, budgets, untrained)),
            gains=tuple(gains(tradeoff.winners, facts.baseline)),
            untrained_gains=tuple(untrained_gains(tradeoff.winners, untrained)),
            front_trials=frozenset(record.trial.key for each in front for record in each.reported),
            collapsed_trials=frozenset(_collapsed(facts, records)),
            teacher_costs=tuple(teacher_costs(facts, records)),
            sensitivities=tuple(sensitivities(records, metric)),
            addresses=addresses,
        )


def _collapsed(facts: SweepFacts, records: Sequence[TrialRecord]) -> Iterator[str]:
    trivial = trivial_value(facts, "validation")
    # That a student learns nothing from an untrained teacher is what the control measures.
    own = (record for record in records if not record.trial.is_control)
    return (record.trial.key for record in own if is_collapsed(record, facts.metric, trivial))
