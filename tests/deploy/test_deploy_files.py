"""Manifests, dashboard and alerts agree with the schemas of their tools and with the code."""

import json
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from rayembed.common.ray_cluster import node_types
from rayembed.serving.config import ServeConfig
from rayembed.serving.metrics import IngressMetrics, ReplicaMetrics

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
MANIFESTS = sorted(DEPLOY.glob("kubernetes*/*.yaml"))
CLUSTERS = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
}
# Fields of KubeRay's v1 interface, https://ray-project.github.io/kuberay/reference/api/
CLUSTER_FIELDS = {"rayVersion", "authOptions", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
KUBERNETES_VERSION = "1.35"


def load(name):
    return yaml.safe_load((DEPLOY / "kubernetes" / name).read_text())


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_manifest_fits_its_schema(path):
    manifest = yaml.safe_load(path.read_text())
    kind = manifest["kind"]
    if kind in CLUSTERS:
        cluster = manifest
        for key in CLUSTERS[kind]:
            cluster = cluster[key]
        assert cluster.keys() <= CLUSTER_FIELDS
        assert cluster["authOptions"] == {"mode": "token"}
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        for group in groups:
            assert group.keys() <= GROUP_FIELDS
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
            kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)
            security = pod["spec"]["securityContext"]
            assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 1000)
            [container] = pod["spec"]["containers"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        for group in cluster["workerGroupSpecs"]:
            assert group["template"]["spec"]["automountServiceAccountToken"] is False
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    elif kind not in ("Kustomization", "ScrapeConfig"):
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def test_kustomizations_name_what_exists():
    for path in DEPLOY.glob("kubernetes*/kustomization.yaml"):
        for name in yaml.safe_load(path.read_text())["resources"]:
            assert (path.parent / name).exists()


def test_the_gpu_overlay_serves_on_a_gpu_with_the_gpu_image():
    overlay = load("../kubernetes-gpu/kustomization.yaml")
    assert overlay["images"] == [{"name": "rayembed", "newTag": "gpu"}]
    [patch] = overlay["patches"]
    config, resources, tolerations = (change["value"] for change in yaml.safe_load(patch["patch"]))
    assert tolerations[0]["key"] in resources["limits"]
    ServeDeploySchema.model_validate(yaml.safe_load(config))
    settings = ServeConfig.parse(yaml.safe_load(config)["applications"][0]["args"])
    assert settings.num_gpus == int(resources["limits"]["nvidia.com/gpu"]) == 1
    assert settings.authentication == "required"


def test_rays_autoscaler_reads_the_gpus_of_the_overlays_cluster():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = load("../kubernetes-gpu/cluster.yaml")
    cluster["metadata"]["namespace"] = "rayembed"
    types = node_types(_derive_autoscaling_config_from_ray_cr(cluster))
    gpus = {
        kind: count * resources["GPU"]
        for count, resources in types
        for kind in resources
        if kind.startswith("accelerator_type")
    }
    assert gpus == {"accelerator_type:L4": 8, "accelerator_type:H100": 64}


def test_served_application_is_valid_and_asks_for_keys():
    config = yaml.safe_load(load("service.yaml")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    [application] = config["applications"]
    settings = ServeConfig.parse(application["args"])
    assert settings.authentication == "required"
    worker = load("service.yaml")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    [container] = worker["template"]["spec"]["containers"]
    assert settings.num_cpus <= float(container["resources"]["requests"]["cpu"])
    assert worker["minReplicas"] >= settings.min_replicas >= 2 <= settings.ingress_replicas
    labels = worker["template"]["metadata"]["labels"]
    budget = load("disruption.yaml")["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert budget["minAvailable"] < worker["minReplicas"]


def test_only_the_endpoint_is_open_to_everybody():
    policy = load("network.yaml")["spec"]
    everybody = [rule["ports"] for rule in policy["ingress"] if "from" not in rule]
    assert everybody == [[{"port": 8000}]]


def test_dashboard_and_alerts_use_metrics_that_exist():
    collectors = (ReplicaMetrics("model"), IngressMetrics())
    known = {metric.name for metrics in collectors for metric in metrics.collect()}
    dashboard = json.loads((DEPLOY / "grafana" / "endpoint.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]:
        expressions += [rule["expr"] for rule in group["rules"]]
    used = {name for text in expressions for name in re.findall(r"rayembed_\w+", text)}
    assert used
    assert {re.sub("_(total|bucket|sum|count)$", "", name) for name in used} <= known


def test_images_leave_the_number_of_threads_to_ray():
    """Ray sets OMP_NUM_THREADS to the cores of an actor unless it is set already."""
    for path in (DEPLOY / "docker").iterdir():
        assert "OMP_NUM_THREADS" not in path.read_text()


def test_images_copy_what_exists():
    for path in (DEPLOY / "docker").iterdir():
        copied = re.findall(r"^COPY (.+) \S+$", path.read_text(), flags=re.MULTILINE)
        names = [name for line in copied for name in line.split()]
        assert names
        assert [name for name in names if not (DEPLOY.parent / name).exists()] == []
