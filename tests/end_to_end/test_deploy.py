"""deploy/rayjob.yaml against KubeRay's own schema: rayjob-schema.json.gz is version v1 of ray-operator's CRD rayjobs.ray.io at
commit feeaf72f of ray-project/kuberay, without descriptions and status, and closed: unknown fields are refused."""

import gzip
import json
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from feedrate.search.engine.nodes import LABEL

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(gzip.decompress((ROOT / "tests" / "rayjob-schema.json.gz").read_bytes()))


@pytest.fixture
def job():
    return yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text())


def test_kuberay_accepts_it(job):
    jsonschema.validate(job, SCHEMA)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(entrypiont="x"),
        lambda spec: spec.update(backoffLimit="two"),
        lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="on"),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("template"),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(images="x"),
    ],
)
def test_a_mistake_would_be_noticed(job, change):
    change(job["spec"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, SCHEMA)


def test_it_gives_trials_their_own_machines_and_asks_for_a_token(job):
    """The head measures nothing; each worker has one slot, one node, its CPUs for itself, and room in /dev/shm."""
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    images = {cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]}
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        images.add(container["image"])
        assert group["resources"]["trial_slot"] == "1"
        assert group["labels"][LABEL]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["resources"]["limits"]["cpu"] == group["resources"]["CPU"]
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        assert {"name": mounts["/dev/shm"], "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}} in pod["volumes"]
        (rule,) = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert rule["labelSelector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()
    assert len(images) == 1


def test_its_command_is_one_of_ours(job):
    """The entry point's words are what `feedrate search` takes."""
    from feedrate.search.cli.main import _parser

    python, flag, module, what, _, *words = shlex.split(job["spec"]["entrypoint"])
    assert (python, flag, module, what) == ("python", "-m", "feedrate.search.head", "search")
    assert _parser().parse_args(["search", *words]).time_budget_s == 600
