"""A sweep on three nodes of one machine: the driver and the home on one, teacher and trials on two that cannot access the home.

python benchmarks/three_nodes.py
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import stillhouse

SPEC = """
name: three-nodes
dataset: {name: digits, validation: 200}
views: {policy: [{crop: {padding: 1}}], count: 4}
teachers: {big: {model: lenet, train: {epochs: 10}, resources: {labels: {pool: teacher}}}}
students: [{model: mlp, hidden: [16]}]
methods: [scratch, kd]
search: {trials_per_method: 2, max_epochs: 8}
trial_resources: {cpu: 1, labels: {pool: trial}}
"""


def main() -> None:
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="three-nodes-"))
    (folder / "three-nodes.yaml").write_text(SPEC, encoding="utf-8")
    nodes = Cluster(shutdown_at_exit=False)
    try:
        nodes.add_node(num_cpus=1, include_dashboard=False)
        for pool in ("teacher", "trial"):
            (folder / pool).mkdir()
            variables = {"STILLHOUSE_COMMON_HOME": "0", "STILLHOUSE_SCRATCH": str(folder / pool)}
            nodes.add_node(num_cpus=2, labels={"pool": pool}, env_vars=variables)
        command = ["sweep", "three-nodes.yaml", "--address", nodes.address, "--home", "home"]
        platform = Path(stillhouse.__file__).parents[1]
        subprocess.run(
            [sys.executable, "-m", "stillhouse.cli", *command],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(platform)},
            check=True,
        )
    finally:
        nodes.shutdown()
    for place in ("home", "teacher", "trial"):
        names = ("manifest", "*.record", "students/*.safetensors", "weights.safetensors")
        found = {name: len(list((folder / place).rglob(name))) for name in names}
        sys.stdout.write(f"{place}: {found['manifest']} sealed views, {found['*.record']} records, ")
        sys.stdout.write(f"{found['students/*.safetensors']} students, {found['weights.safetensors']} teachers\n")


if __name__ == "__main__":
    main()
