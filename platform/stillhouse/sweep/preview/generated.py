"""How many samples the trials generate whose methods see no data: their length does not follow from the data set's size."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from stillhouse import methods
from stillhouse.compress.students import sketch_student, student_blueprint
from stillhouse.data.datasets import ImageData
from stillhouse.distill.hyperparameters import make_method
from stillhouse.distill.method import Setup
from stillhouse.distill.stages import check_stages
from stillhouse.models.blueprint import blueprint
from stillhouse.spec.records import Trial
from stillhouse.sweep.planning.plan import Plan
from stillhouse.user_code import user_code


@dataclass(frozen=True, kw_only=True)
class GeneratedSamples:
    """A trial with stages that see no data.

    Attributes:
        epochs: of these stages together.
        samples: that pass through the student in them, and through its teacher.
    """

    trial: Trial
    epochs: int
    samples: int


def generated_samples(plan: Plan, data: ImageData) -> list[GeneratedSamples]:
    """The trials of the search phase that have such stages."""
    return list(_found(plan, data))


def _found(plan: Plan, data: ImageData) -> Iterator[GeneratedSamples]:
    shape = data.num_classes, data.input_shape
    for trial in plan.trials:
        # A method that generates its images calls a teacher on them.
        if not methods.find(trial.method).calls_teacher or not trial.teachers:
            continue
        teacher = plan.spec.teachers[trial.teachers[0]]
        setup = Setup(
            teacher=blueprint(teacher.model, teacher.options, *shape).architecture,
            student=student_blueprint(trial.student, *shape).architecture,
            new_student=partial(sketch_student, trial.student, *shape),
            num_samples=len(data.train),
            epochs=trial.epochs,
        )
        with user_code():
            stages = [each for each in check_stages(make_method(trial.method, trial.hyperparameters), setup) if each.data_free]
        samples = 0
        for stage in stages:
            batch = plan.spec.training.batch_size if stage.samples_per_step is None else stage.samples_per_step
            per_epoch = -(-len(data.train) // batch) if stage.steps_per_epoch is None else stage.steps_per_epoch
            samples += stage.epochs * per_epoch * batch
        if stages:
            yield GeneratedSamples(trial=trial, epochs=sum(stage.epochs for stage in stages), samples=samples)
