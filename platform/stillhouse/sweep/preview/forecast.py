"""What a plan takes and where it would run, known before it starts: `sweep --dry-run --measure --address`."""

from dataclasses import dataclass
from typing import Any

import ray

from stillhouse.data.datasets import ImageData
from stillhouse.sweep.cluster.cluster_nodes import addable_nodes, nodes_of_cluster
from stillhouse.sweep.cluster.connection import connect
from stillhouse.sweep.cluster.placement import Placement, place_sweep
from stillhouse.sweep.planning.plan import Plan
from stillhouse.sweep.preview.hours import Estimate, estimate


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is known of a plan before it starts: what it takes, and where it would run.

    Attributes:
        estimate: None if nothing was measured.
        placement: on the cluster at `address`; None without an address.
        undecided: whether an autoscaler that does not report what it can add may still add a node.
    """

    estimate: Estimate | None
    address: str | None = None
    nodes: int = 0
    placement: Placement | None = None
    undecided: bool = False

    @property
    def impossible(self) -> bool:
        return self.placement is not None and bool(self.placement.problems) and not self.undecided

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {"estimate": self.estimate.to_dict() if self.estimate else None}
        if self.placement is not None:
            document["placement"] = {
                "address": self.address,
                "nodes": self.nodes,
                "trials_at_once": self.placement.trials,
                "added": dict(self.placement.added),
                "problems": list(self.placement.problems),
                "undecided": self.undecided,
            }
        return document

    def lines(self) -> list[str]:
        """The forecast as text."""
        lines = self.estimate.lines(self.placement.trials if self.placement else None) if self.estimate else []
        if self.placement is None:
            return lines
        where = f"the cluster at {self.address} ({self.nodes} nodes now)"
        if self.placement.problems:
            may = "; its autoscaler may add one" if self.undecided else ""
            return [*lines, *(f"{where} has no node for it{may}: {problem}" for problem in self.placement.problems)]
        added = ", ".join(f"{count} {name}" for name, count in self.placement.added.items())
        more = f", when its autoscaler has added {added}" if added else ""
        return [*lines, f"{where} holds {self.placement.trials} trials at once besides the teachers{more}"]


def make_forecast(plan: Plan, data: ImageData, *, measure: bool, address: str | None) -> Forecast:
    """Measures and places a plan, and starts nothing else.

    Raises:
        InfrastructureError: there is no cluster at the address.
    """
    if address is None:
        return Forecast(estimate=estimate(plan, data) if measure else None)
    connect(address, plan.spec)
    try:
        nodes, addable = nodes_of_cluster(), addable_nodes()
        found = place_sweep(plan.spec, nodes, addable or ())
        # Measuring must not make an autoscaler add a node.
        able = measure and not place_sweep(plan.spec, nodes).problems
        measured = estimate(plan, data, remote=True) if able else None
        return Forecast(estimate=measured, address=address, nodes=len(nodes), placement=found, undecided=addable is None)
    finally:
        ray.shutdown()
