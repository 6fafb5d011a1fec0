"""Every way in which the processor would wait for a GPU is counted, and nothing else is."""

from collections.abc import Callable
from typing import Any

import torch

from stillhouse.testing.waits import counted


def test_every_way_to_wait_is_counted() -> None:
    values = torch.arange(3.0)
    ways: dict[str, Callable[[], Any]] = {
        "item": values[0].item,
        "bool": lambda: bool(values[0] > 1),
        "float": lambda: float(values[0]),
        "tolist": values.tolist,
        "mask": lambda: values[values > 1],
        "mask that is written": lambda: values.__setitem__(values > 1, 0.0),
        "nonzero": (values > 1).nonzero,
        "Python data": lambda: torch.tensor([1.0]),
        "list": lambda: values[[0, 2]],
        "cpu": values.cpu,
        "to the CPU": lambda: values.to("cpu"),
        "NumPy": lambda: torch.from_numpy(values.numpy()),
        "eigenvectors": lambda: torch.linalg.eigh(torch.eye(2)),
        "singular values": lambda: torch.linalg.svd(torch.eye(2)),
        "inverse": lambda: torch.linalg.inv(torch.eye(2)),
        "Cholesky factor": lambda: torch.linalg.cholesky(torch.eye(2)),
        "unique": values.unique,
        "counts": lambda: torch.ones(2, dtype=torch.int64).bincount(),
    }
    for name, way in ways.items():
        noted: list[str] = []
        with counted(noted):
            way()
        assert noted, name
    with counted(noted := []):
        values.gather(0, torch.zeros(1, dtype=torch.int64)).clamp(0, 1).sum()
    assert noted == []
