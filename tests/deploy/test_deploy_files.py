"""Manifests, dashboard and alerts agree with the schemas of their tools and with the code."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.node_provider import IN_CLUSTER_TOKEN_PATH
from ray.serve.schema import ServeDeploySchema

from rayembed.common.ray_cluster import node_types
from rayembed.common.ray_compat import haproxy_settings
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
CLUSTER_FIELDS = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"),
    *("gcsFaultToleranceOptions", "headGroupSpec", "workerGroupSpecs"),
}
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
KUBERNETES_VERSION = "1.35"


def load(name):
    return yaml.safe_load((DEPLOY / "kubernetes" / name).read_text())


def rendered(folder):
    """Manifests by kind as `kubectl apply -k` sends them."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl")
    output = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(output)}


def check_manifest(manifest):
    """Fails where a manifest does not fit its schema, or a pod may do what it need not."""
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
    elif kind not in ("Kustomization", "Component", "ScrapeConfig", "PodMonitor"):
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_manifest_fits_its_schema(path):
    check_manifest(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("folder", "image"), [("kubernetes", "rayembed:cpu"), ("kubernetes-gpu", "rayembed:gpu")]
)
def test_rendered_folders_fit_their_schemas_and_have_one_image(folder, image):
    manifests = rendered(DEPLOY / folder)
    for manifest in manifests.values():
        check_manifest(manifest)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "rayembed"
    assert {"RayService", "NetworkPolicy", "PodMonitor"} <= manifests.keys()
    assert set(re.findall(r"'image': '(.+?)'", str(manifests))) == {image}


@pytest.mark.parametrize("folder", ["kubernetes", "kubernetes-gpu"])
def test_the_component_keeps_the_clusters_state_in_redis(tmp_path, folder):
    here = os.path.relpath(DEPLOY, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{here}/{folder}]\ncomponents: [{here}/kubernetes-redis]\n"
    )
    service = rendered(tmp_path)["RayService"]
    check_manifest(service)
    options = service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    container = {"name": "x", "env": [{"name": "PASSWORD", **options.pop("redisPassword")}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [container]}}
    kubernetes_validate.validate(pod, KUBERNETES_VERSION, strict=True)
    assert container["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "rayembed-redis"
    assert options == {"redisAddress": "redis:6379"}


def test_kustomizations_name_what_exists():
    for path in DEPLOY.glob("kubernetes*/kustomization.yaml"):
        for name in yaml.safe_load(path.read_text()).get("resources", []):
            assert (path.parent / name).exists()


def test_the_gpu_overlay_serves_on_a_gpu_with_the_gpu_image():
    overlay = load("../kubernetes-gpu/kustomization.yaml")
    assert overlay["images"] == [{"name": "rayembed", "newTag": "gpu"}]
    [patch] = overlay["patches"]
    config, resources, tolerations, labels = (change["value"] for change in yaml.safe_load(patch["patch"]))
    assert tolerations[0]["key"] in resources["limits"]
    assert labels == {"nvidia.com/gpu.product": "NVIDIA-L4"}
    ServeDeploySchema.model_validate(yaml.safe_load(config))
    settings = ServeConfig.parse(yaml.safe_load(config)["applications"][0]["args"])
    assert settings.num_gpus == int(resources["limits"]["nvidia.com/gpu"]) == 1
    assert settings.authentication == "required"


def test_a_group_of_gpus_starts_on_nodes_that_have_them():
    groups = load("../kubernetes-gpu/cluster.yaml")["spec"]["workerGroupSpecs"]
    for group in groups:
        pod = group["template"]["spec"]
        declared = re.findall(r"accelerator_type:(\w+)", group["rayStartParams"].get("resources", ""))
        products = pod.get("nodeSelector", {}).get("nvidia.com/gpu.product", "")
        assert declared == re.findall(r"NVIDIA-(\w+)", products)
        assert ("nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]) == bool(declared)
        assert [each["key"] for each in pod.get("tolerations", [])] == ["nvidia.com/gpu"] * len(declared)


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
    assert worker["minReplicas"] >= settings.min_replicas >= 2 <= settings.front_ends
    labels = worker["template"]["metadata"]["labels"]
    budget = load("disruption.yaml")["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert budget["minAvailable"] < worker["minReplicas"]


@pytest.mark.parametrize(
    ("file", "starts"),
    [("cluster.yaml", 2), ("deploy/docker/Dockerfile.cpu", 1), ("deploy/docker/Dockerfile.gpu", 1)],
)
def test_every_ray_that_is_started_has_haproxy(file, starts):
    text = (Path(__file__).parents[2] / file).read_text()
    for name in ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED"):
        assert text.count(f"{name}={haproxy_settings()[name]}") == starts


def test_only_the_endpoint_is_open_to_everybody():
    policy = load("network.yaml")["spec"]
    everybody = [rule["ports"] for rule in policy["ingress"] if "from" not in rule]
    assert everybody == [[{"port": 8000}]]


def test_prometheus_reaches_the_nodes_that_it_scrapes():
    policy = load("network.yaml")["spec"]
    [rule] = [rule for rule in policy["ingress"] if rule.get("ports") == [{"port": 8080}]]
    assert rule["from"][0]["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}
    assert load("nodes-monitor.yaml")["spec"]["selector"] == policy["podSelector"]


def test_only_the_autoscaler_gets_the_heads_token():
    cluster = load("service.yaml")["spec"]["rayClusterConfig"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    [mount] = cluster["autoscalerOptions"]["volumeMounts"]
    kubernetes_validate.validate(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x"},
            "spec": {
                "containers": [{"name": "autoscaler"} | cluster["autoscalerOptions"]],
                "volumes": head["volumes"],
            },
        },
        KUBERNETES_VERSION,
        strict=True,
    )
    assert f"{mount['mountPath']}/token" == IN_CLUSTER_TOKEN_PATH
    assert head["automountServiceAccountToken"] is False
    assert mount["name"] in [volume["name"] for volume in head["volumes"]]
    [container] = head["containers"]
    assert mount["name"] not in [other["name"] for other in container["volumeMounts"]]


def test_alerts_watch_the_endpoint_and_not_each_node():
    text = (DEPLOY / "prometheus" / "alerts.yaml").read_text()
    [pattern] = re.findall(r'up\{job=~"(.+)"\}', text)
    assert re.fullmatch(pattern, f"scrapeConfig/rayembed/{load('monitor.yaml')['metadata']['name']}")
    assert not re.fullmatch(pattern, f"rayembed/{load('nodes-monitor.yaml')['metadata']['name']}")


def test_images_have_one_python_to_the_patch_version():
    """Ray compares it: Ubuntu's and a floating tag would part ways."""
    patterns = {"cpu": r"^FROM python:(3\.\d+\.\d+)-", "gpu": r"uv venv .*--python (3\.\d+\.\d+) "}
    versions = {
        version
        for kind, pattern in patterns.items()
        for version in re.findall(pattern, (DEPLOY / f"docker/Dockerfile.{kind}").read_text(), re.MULTILINE)
    }
    assert len(versions) == 1


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
