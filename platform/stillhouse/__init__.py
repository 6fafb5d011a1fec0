"""Stillhouse: knowledge distillation swept over a Ray cluster.

from stillhouse import Sweep

results = Sweep.from_yaml("spec.yaml").run()
results.table(), results.pareto(), results.best_numbers()

In a notebook, a sweep shows its progress, and `Sweep` and `Results` are shown as tables.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.sweep.results.results import Results
    from stillhouse.sweep.sweep import Sweep

__version__ = "0.1.0"
__all__ = ["Results", "Sweep", "__version__"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Torch and Ray take seconds to import, which `stillhouse --help` and a method file need not wait for.
    if name == "Sweep":
        from stillhouse.sweep.sweep import Sweep

        return Sweep
    if name == "Results":
        from stillhouse.sweep.results.results import Results

        return Results
    raise AttributeError(f"module 'stillhouse' has no attribute '{name}'")
