"""The files that start clusters: Ray's own validators on those for its launcher, the fields of the RayJob on the other."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped,unused-ignore]
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator

from stillhouse.spec.load import validate
from stillhouse.sweep.cluster.cluster_nodes import kinds_of_config
from stillhouse.sweep.cluster.placement import place_sweep

ROOT = Path(__file__).parent.parent
AWS, ON_PREM, JOB = ROOT / "cluster.yaml", ROOT / "deploy" / "on-prem.yaml", ROOT / "deploy" / "rayjob.yaml"


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("path", [AWS, ON_PREM])
def test_rays_own_validator_takes_the_launchers_file(path: Path) -> None:
    validate_config(prepare_config(read(path)))


@pytest.mark.parametrize("path", [AWS, ON_PREM])
def test_rays_own_validator_refuses_a_key_that_is_none(path: Path) -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config(read(path) | {"idle_timeout": 3}))


def test_the_head_has_no_gpu_workers_start_from_zero_and_only_trials_are_on_spot() -> None:
    kinds = read(AWS)["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert [kinds[name]["min_workers"] for name in ("teacher", "trial")] == [0, 0]
    spot = {name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"trial"}


@pytest.mark.parametrize(
    ("teachers", "trials", "launched"),
    [(0, 0, {}), (1, 0, {"teacher": 1}), (0, 10, {"trial": 3}), (2, 5, {"teacher": 2, "trial": 2})],
)
def test_rays_autoscaler_launches_the_nodes_that_labels_ask_for(teachers: int, trials: int, launched: dict[str, int]) -> None:
    config = AutoscalingConfig(prepare_config(read(AWS)), skip_content_hash=True)

    def request(needs: dict[str, float], pool: str) -> Any:
        selector = [("pool", LabelSelectorOperator.LABEL_OPERATOR_IN, [pool])]
        return ResourceRequestUtil.make(needs, label_selectors=[selector])

    asked = [request({"CPU": 4, "GPU": 1}, "teacher")] * teachers + [request({"CPU": 2, "GPU": 0.25}, "trial")] * trials
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_worker_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(asked),
        )
    )
    assert {each.instance_type: each.count for each in reply.to_launch} == launched
    assert not reply.infeasible_resource_requests


def test_the_plan_finds_room_for_the_spec_in_the_files_header() -> None:
    header = "\n".join(line[1:] for line in AWS.read_text().splitlines() if line.startswith("#   trial_resources"))
    spec = validate(
        {
            "name": "placed",
            "dataset": {"name": "digits"},
            "students": ["mlp"],
            "methods": ["kd"],
            "teachers": {"big": {"model": "lenet", "resources": {"cpu": 4, "gpu": 1, "labels": {"pool": "teacher"}}}},
            **yaml.safe_load(header.strip()),
        }
    )
    found = place_sweep(spec, [], kinds_of_config(read(AWS)))
    assert not found.problems
    # Ten nodes of one GPU, four trials on each.
    assert (found.trials, found.added) == (40, {"teacher": 1, "trial": 10})


@pytest.mark.parametrize("path", [AWS, ON_PREM])
def test_nodes_get_the_pinned_ray_the_token_and_a_head_that_is_not_open_to_the_network(path: Path) -> None:
    config = read(path)
    assert any(f'"ray[default,tune]=={pinned("ray")}"' in command for command in config["setup_commands"])
    assert "~/.ray/auth_token" in config["file_mounts"].values()
    for starting in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in starting[-1]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


# The fields of KubeRay 1.5's custom resource that the file uses, and which of them must be there.
FIELDS = {
    "RayJob": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec"},
    "rayClusterSpec": {
        *("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "headGroupSpec", "workerGroupSpecs"),
    },
    "autoscalerOptions": {"version", "idleTimeoutSeconds", "upscalingMode", "resources", "image", "env"},
    "headGroupSpec": {"rayStartParams", "template", "labels", "resources", "serviceType"},
    "workerGroupSpec": {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "labels",
        "resources",
        "rayStartParams",
        "template",
    },
}
REQUIRED_OF_A_WORKER_GROUP = {"groupName", "maxReplicas", "minReplicas", "template"}


def groups() -> list[dict[str, Any]]:
    cluster = read(JOB)["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_job_has_the_fields_of_the_custom_resource_and_no_others() -> None:
    job = read(JOB)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    sections = [("RayJob", job), ("spec", job["spec"]), ("rayClusterSpec", cluster)]
    sections += [("autoscalerOptions", cluster["autoscalerOptions"]), ("headGroupSpec", cluster["headGroupSpec"])]
    sections += [("workerGroupSpec", group) for group in cluster["workerGroupSpecs"]]
    for name, section in sections:
        assert set(section) <= FIELDS[name], name
    for group in cluster["workerGroupSpecs"]:
        assert set(group) >= REQUIRED_OF_A_WORKER_GROUP
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_jobs_images_and_ray_versions_are_those_of_the_constraints() -> None:
    assert read(JOB)["spec"]["rayClusterSpec"]["rayVersion"] == pinned("ray") == version("ray")
    images = {container["image"] for group in groups() for container in group["template"]["spec"]["containers"]}
    assert len(images) == 1
    assert images.pop().endswith(f"ray-{pinned('ray')}")


def test_every_pod_of_the_job_asks_for_what_it_may_take_and_sees_the_shared_folder() -> None:
    for group in groups():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["shared"] == "/shared"
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    head, *workers = groups()
    assert head["rayStartParams"] == {"num-cpus": "0"}
    assert [group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for group in workers] == [
        "1",
        "1",
    ]


def test_the_job_asks_for_tokens_and_an_autoscaler_that_knows_labels() -> None:
    cluster = read(JOB)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert [group["labels"]["pool"] for group in cluster["workerGroupSpecs"]] == ["teacher", "trial"]
    assert cluster["workerGroupSpecs"][1]["template"]["spec"]["tolerations"], "trials may run on nodes that can be taken away"
