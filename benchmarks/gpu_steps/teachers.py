"""Steps 5 and 6: filling and verifying views, serving calls, and processes that share the GPU."""

import multiprocessing
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from gpu_steps.parts import new_model, random_data, seconds
from gpu_steps.plan import Settings, finish


def filling(settings: Settings) -> dict[str, Any]:
    """Samples per second of a filled view, in both number formats, and that verifying it finds no difference."""
    from stillhouse.data.views import Views
    from stillhouse.knowledge.kinds import feature, logits
    from stillhouse.knowledge.store import KnowledgeStore
    from stillhouse.models.architecture import describe
    from stillhouse.teachers.definition import TeacherDefinition
    from stillhouse.teachers.library import LoadedTeacher
    from stillhouse.teachers.service import TeacherService

    data, name = random_data(settings.size(8192, 128)), settings.size("resnet32x4", "resnet8")
    definition = TeacherDefinition(name="teacher", model=name, num_classes=10, input_shape=data.input_shape)
    torch.manual_seed(0)
    model = new_model(name, data).to(settings.device).eval().requires_grad_(False)
    layer = describe(model, name=name, input_shape=data.input_shape).stages[-1]
    teacher = LoadedTeacher(
        definition=definition,
        model=model,
        key="key",
        path=Path(),
        weights_hash="hash",
        validation_value=0.0,
        train_seconds=0.0,
        trained_now=False,
    )
    views = Views(("crop", "flip"), 2, data.input_shape, len(data.train.labels))
    rates: dict[str, float] = {}
    problems: list[str] = []
    tf32 = torch.backends.cudnn.allow_tf32
    try:
        for allowed in settings.size((True, False), (tf32,)):
            torch.backends.cudnn.allow_tf32 = allowed
            for dtype in ("float32", "float16"):
                case = f"{dtype}, TF32 {'on' if allowed else 'off'}"
                with tempfile.TemporaryDirectory() as folder:
                    service = TeacherService(
                        teacher, data, views, KnowledgeStore(Path(folder)), dtype=dtype, device=settings.device
                    )
                    try:
                        kinds = [logits(), feature(layer)]
                        service.fill(0, kinds)
                        rates[case] = len(data.train.labels) / seconds(lambda: service.fill(1, kinds), settings)  # noqa: B023
                        answer = service.verify(kinds, pairs=settings.size(4000, 200), seed=0)
                    finally:
                        service.close()
                if answer["differences"]:
                    problems.append(f"{case}: verifying finds differences: {answer['differences'][:2]}")
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    return finish(problems, {"samples_per_s": rates})


def serving(settings: Settings) -> dict[str, Any]:
    """Rows per second of served forward passes with their gradients, and whether one process's memory stays its own."""
    problems: list[str] = []
    figures: dict[str, Any] = {"rows_per_s": _served_rates(settings)}
    if not settings.tiny:
        figures |= _shared_memory(problems)
    return finish(problems, figures)


def _served_rates(settings: Settings) -> dict[str, float]:
    from stillhouse.teachers.call_queue import FairLock
    from stillhouse.teachers.model_server import ModelServer

    data, rows = random_data(64), settings.size(256, 16)
    rates = {}
    for merged in (0, 1024):
        for callers in settings.size((1, 4, 8), (1, 2)):
            torch.manual_seed(0)
            model = new_model(settings.size("resnet32x4", "resnet8"), data).to(settings.device)
            server = ModelServer(model, lock=FairLock(), device=settings.device, merged_rows=merged)
            rounds = settings.size(10, 1)

            def call(number: int, rounds: int, server: Any = server) -> None:
                images = torch.randn(rows, *data.input_shape).numpy()
                for turn in range(rounds):
                    token = f"{number}-{turn}"
                    (outputs,) = server.forward(str(number), images, (), token)
                    server.pull_back(str(number), images, (), [outputs], token)

            def together(count: int, callers: int = callers, call: Any = call) -> None:
                threads = [threading.Thread(target=call, args=(number, count)) for number in range(callers)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

            together(1)
            elapsed = seconds(lambda count=rounds, run=together: run(count), settings)
            rates[f"{callers} callers, merged up to {merged}"] = callers * rounds * rows / elapsed
    return rates


def _shared_memory(problems: list[str]) -> dict[str, Any]:
    """K processes of 1/K of the GPU each: their training speed; then one that takes too much, beside one that does not."""
    context = multiprocessing.get_context("spawn")
    rates = {}
    for processes in (1, 2, 4, 8):
        answers = context.Queue()
        workers = [context.Process(target=_train, args=(answers, 1 / processes, False)) for _ in range(processes)]
        found = _answers(workers, answers)
        rates[f"{processes} processes"] = sum(each["steps_per_s"] for each in found if "steps_per_s" in each)
        problems += [f"{processes} processes: {each['error']}" for each in found if "error" in each]
    answers = context.Queue()
    workers = [context.Process(target=_train, args=(answers, 0.5, greedy)) for greedy in (True, False)]
    found = _answers(workers, answers)
    greedy, modest = (next(each for each in found if each["greedy"] is kind) for kind in (True, False))
    if greedy.get("out_of_memory") is not True:
        problems.append(f"a process with half of the GPU could allocate three quarters of it: {greedy}")
    if "steps_per_s" not in modest:
        problems.append(f"a process failed beside one that ran out of memory: {modest}")
    return {"steps_per_s": rates}


def _answers(workers: list[Any], answers: Any) -> list[dict[str, Any]]:
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    return found


def _train(answers: Any, share: float, greedy: bool) -> None:
    """A process of its own: some epochs of a small student within its share of the GPU, or too much memory."""
    from gpu_steps.parts import new_trainer
    from gpu_steps.replacements import replace_missing

    replace_missing()
    from stillhouse.device import is_out_of_memory, limit_memory

    settings, answer = Settings(), {"greedy": greedy}
    try:
        limit_memory(share)
        if greedy:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.empty(int(0.75 * total), dtype=torch.uint8, device="cuda")
        trainer = new_trainer("resnet8x4", random_data(1600), settings, epochs=6)
        trainer.run_epoch()
        times = [seconds(trainer.run_epoch, settings) for _ in range(5)]
        answers.put({**answer, "steps_per_s": trainer.split.batches_per_epoch / statistics.median(times)})
    except RuntimeError as error:
        answers.put({**answer, "error": str(error).splitlines()[0], "out_of_memory": is_out_of_memory(error)})
    time.sleep(0.1)
