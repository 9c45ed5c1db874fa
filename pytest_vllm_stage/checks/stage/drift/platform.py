"""What the platform legitimately adds to an object that was declared: known by field, and by who has it.

A rule names the field as `fields.render_path` writes it. Where a rule has a value, only that value is the platform's;
a field that a person owns is the platform's only with such a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.checks.stage.drift.fields import Difference, Path
from pytest_vllm_stage.checks.stage.drift.owners import Owner
from pytest_vllm_stage.stage.objects import Object

#: Prefixes of labels and annotations that controllers of the platform write, by the domain before the slash.
_PLATFORM_DOMAINS = (
    "kubernetes.io",
    "k8s.io",
    "openshift.io",
    "kserve.io",
    "knative.dev",
    "istio.io",
    "maistra.io",
    "opendatahub.io",
    "argoproj.io",
    "fluxcd.io",
    "helm.sh",
    "ovn.org",
    "cni.cncf.io",
    "projectcalico.org",
    "kueue.x-k8s.io",
    "nvidia.com",
    "prometheus.io",
    "linkerd.io",
    "cilium.io",
    "reloader.stakater.com",
    "kyverno.io",
    "cert-manager.io",
    "external-secrets.io",
    "velero.io",
    "cattle.io",
    "cloud.google.com",
    "gke.io",
    "eks.amazonaws.com",
    "vllm-stage",
)
#: Keys below a platform's domain that change what runs: only a declaration may set them.
_BEHAVIOUR_KEYS = (
    "serving.kserve.io/stop",
    "serving.kserve.io/autoscalerClass",
    "serving.kserve.io/metric",
    "serving.kserve.io/targetUtilizationPercentage",
    "autoscaling.knative.dev/",
    "sidecar.istio.io/inject",
)

_POD = r"(?:spec\.template\.)?spec\."
_CONTAINER = _POD + r"(?:initContainers|containers)\[[^\]]+\]\."
_PROBE = _CONTAINER + r"(?:readiness|liveness|startup)Probe\."
_VOLUME = _POD + r"volumes\[[^\]]+\]\."
_NOT_READY = [
    {"effect": "NoExecute", "key": f"node.kubernetes.io/{state}", "operator": "Exists", "tolerationSeconds": 300}
    for state in ("not-ready", "unreachable")
]
_ANY = object()
#: Defaults of the API server: field and value.
_DEFAULTS: tuple[tuple[str, Any], ...] = (
    (_CONTAINER + "terminationMessagePath", "/dev/termination-log"),
    (_CONTAINER + "terminationMessagePolicy", "File"),
    (_CONTAINER + "imagePullPolicy", ("IfNotPresent", "Always")),
    (_CONTAINER + r"ports\[[^\]]+\]\.protocol", "TCP"),
    (_CONTAINER + r"env\[[^\]]+\]\.valueFrom\.fieldRef\.apiVersion", "v1"),
    (_CONTAINER + r"env\[[^\]]+\]\.valueFrom\.resourceFieldRef\.divisor", ("0", 0)),
    (_CONTAINER + r"volumeMounts\[[^\]]+\]\.recursiveReadOnly", "Disabled"),
    (_PROBE + "timeoutSeconds", 1),
    (_PROBE + "periodSeconds", 10),
    (_PROBE + "successThreshold", 1),
    (_PROBE + "failureThreshold", 3),
    (_PROBE + r"httpGet\.scheme", "HTTP"),
    (_PROBE + r"httpGet\.path", "/"),
    (_POD + "restartPolicy", "Always"),
    (_POD + "dnsPolicy", "ClusterFirst"),
    (_POD + "schedulerName", "default-scheduler"),
    (_POD + "terminationGracePeriodSeconds", 30),
    (_POD + "enableServiceLinks", True),
    (_POD + "serviceAccount(?:Name)?", "default"),
    (_VOLUME + r"(?:configMap|secret|projected|downwardAPI)\.defaultMode", 420),
    (r"spec\.progressDeadlineSeconds", 600),
    (r"spec\.revisionHistoryLimit", 10),
    (r"spec\.replicas", 1),
    (r"spec\.strategy\.type", "RollingUpdate"),
    (r"spec\.strategy\.rollingUpdate\.max(?:Surge|Unavailable)", "25%"),
    (r"spec\.(?:completions|parallelism)", 1),
    (r"spec\.completionMode", "NonIndexed"),
    (r"spec\.(?:suspend|manualSelector)", False),
    (r"spec\.backoffLimit", 6),
    (r"spec\.podReplacementPolicy", ("TerminatingOrFailed", "Failed")),
    (r"spec\.ports\[[^\]]+\]\.protocol", "TCP"),
    (r"spec\.internalTrafficPolicy", "Cluster"),
    (r"spec\.externalTrafficPolicy", "Cluster"),
    (r"spec\.allocateLoadBalancerNodePorts", True),
    (r"spec\.sessionAffinity", "None"),
    (r"spec\.type", "ClusterIP"),
    (r"spec\.volumeMode", "Filesystem"),
    (r"type", "Opaque"),
    # KServe's webhook.
    (r"spec\.predictor\.model\.protocolVersion", ("v1", "v2")),
    (r"spec\.predictor\.model\.name", ("", "kserve-container")),
    (r"spec\.predictor\.(?:min|max)Replicas", (0, 1)),
    (r"spec\.supportedModelFormats\[[^\]]+\]\.(?:autoSelect|priority)", (False, 1)),
    (r"spec\.(?:multiModel|disabled)", False),
)
_SECURITY = r"securityContext\.(?:runAs\w+|fsGroup|supplementalGroups|seLinuxOptions|seccompProfile|capabilities)\b.*"
#: What admission plugins and controllers add with a value of their own: who, to which kinds (any if none), the field.
_ADDITIONS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("the scheduler", ("Pod",), r"spec\.nodeName"),
    ("admission plugin Priority", ("Pod",), r"spec\.(?:priority|preemptionPolicy|priorityClassName)"),
    ("admission plugin ServiceAccount", ("Pod",), r"spec\.volumes\[kube-api-access-[a-z0-9]+\]"),
    (
        "admission plugin ServiceAccount",
        ("Pod",),
        _CONTAINER + r"volumeMounts\[/var/run/secrets/kubernetes\.io/serviceaccount\]",
    ),
    ("admission plugin ServiceAccount", ("Pod",), r"spec\.(?:imagePullSecrets\[.+\]|serviceAccount(?:Name)?)"),
    ("the API server", (), _POD + "serviceAccount"),
    ("the token controller", ("ServiceAccount",), r"(?:secrets|imagePullSecrets)\[.+-(?:dockercfg|token)-[a-z0-9]+\]"),
    ("the Job controller", ("Job",), r"spec\.(?:selector|suspend)\b.*"),
    (
        "the Job controller",
        ("Job",),
        r"spec\.template\.metadata\.labels\.(?:batch\.kubernetes\.io/)?(?:controller-uid|job-name)",
    ),
    ("the API server", ("Service",), r"spec\.(?:clusterIPs?|ipFamilies|ipFamilyPolicy|healthCheckNodePort)"),
    ("the API server", ("Service",), r"spec\.ports\[[^\]]+\]\.(?:nodePort|targetPort)"),
    ("the volume binder", ("PersistentVolumeClaim",), r"spec\.(?:volumeName|storageClassName)"),
    (
        "KServe's webhook",
        ("Pod",),
        r"spec\.volumes\[(?:kserve-pvc-source|kserve-provision-location|modelcar|cabundle-cert)\]",
    ),
    ("KServe's webhook", ("Pod",), _CONTAINER + r"volumeMounts\[/mnt/(?:models|pvc)\]"),
    ("KServe's webhook", ("Pod",), r"spec\.initContainers\[(?:storage-initializer|modelcar-init)\]"),
    ("KServe's webhook", ("Pod",), r"spec\.containers\[(?:modelcar|agent)\]"),
    ("KServe's webhook", ("InferenceService",), r"metadata\.annotations\.modelFormat"),
    ("Kueue", ("Pod",), r"spec\.schedulingGates\[kueue\.x-k8s\.io/.+\]"),
    # A ServiceAccount with a cloud's identity: https://github.com/aws/amazon-eks-pod-identity-webhook,
    # https://azure.github.io/azure-workload-identity/docs/topics/service-account-labels-and-annotations.html
    (
        "the cloud's identity webhook",
        ("Pod",),
        r"spec\.volumes\[(?:aws-iam-token|eks-pod-identity-token|azure-identity-token)\]",
    ),
    (
        "the cloud's identity webhook",
        ("Pod",),
        _CONTAINER
        + r"volumeMounts\[/var/run/secrets/(?:(?:pods\.)?eks\.amazonaws\.com/serviceaccount|azure/tokens)/?\]",
    ),
    (
        "the cloud's identity webhook",
        ("Pod",),
        _CONTAINER
        + r"env\[(?:AWS_(?:DEFAULT_)?REGION|AWS_ROLE_ARN|AWS_WEB_IDENTITY_TOKEN_FILE|AWS_STS_REGIONAL_ENDPOINTS|"
        r"AWS_CONTAINER_(?:CREDENTIALS_FULL_URI|AUTHORIZATION_TOKEN_FILE)|"
        r"AZURE_(?:CLIENT_ID|TENANT_ID|FEDERATED_TOKEN_FILE|AUTHORITY_HOST))\]",
    ),
)
#: Tolerations that admission plugins add: of the node's states, and of extended resources that the pod requests.
_TOLERATED = re.compile(r"^(?:node\.kubernetes\.io/|nvidia\.com/|amd\.com/)")
#: Injectors by the annotation in which they declare what they injected.
_ISTIO = "sidecar.istio.io/status"
_INJECTORS: dict[str, Sequence[str]] = {
    "linkerd.io/proxy-version": ("linkerd-proxy", "linkerd-init", "linkerd-"),
    "vault.hashicorp.com/agent-inject-status": ("vault-agent", "vault-agent-init", "home-", "vault-"),
    "oneagent.dynatrace.com/injected": ("install-oneagent", "oneagent-", "injection-config"),
    "k8s.v1.cni.cncf.io/network-status": (),
}
_LIMIT_RANGER = "kubernetes.io/limit-ranger"


@dataclass(frozen=True)
class Surroundings:
    """What else of the cluster explains a live field.

    Attributes:
        limit_ranges: The namespace's LimitRanges that are older than the stage: they were there when it was deployed.
        later_limit_ranges: Those that are newer.
    """

    limit_ranges: Sequence[Object] = ()
    later_limit_ranges: Sequence[Object] = ()


def explain_addition(item: Object, found: Difference, owner: Owner, around: Surroundings) -> str | None:
    """Which part of the platform added a live field that is not declared; None where no part is known to."""
    where = found.where
    for pattern, value in _DEFAULTS:
        # Where the API server chooses among several values, a person's choice is a change.
        chosen = owner.is_person and isinstance(value, tuple)
        if re.fullmatch(pattern, where) and not chosen and (value is _ANY or found.live in _as_tuple(value)):
            return "default"
    if owner.is_person:
        return None if not is_restart(where) else "kubectl rollout restart"
    return next((by for explain in _EXPLAINERS if (by := explain(item, found, around))), None)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def is_restart(where: str) -> bool:
    """The annotation that ``kubectl rollout restart`` sets."""
    return where.endswith("annotations.kubectl.kubernetes.io/restartedAt")


def _explain_by_field(item: Object, found: Difference, _around: Surroundings) -> str | None:
    kind = item.get("kind")
    return next(
        (by for by, kinds, pattern in _ADDITIONS if kind in (kinds or (kind,)) and re.fullmatch(pattern, found.where)),
        None,
    )


def _explain_security(item: Object, found: Difference, _around: Surroundings) -> str | None:
    """What OpenShift's security context constraints add; the pod's annotation names the applied one."""
    annotated = "openshift.io/scc" in (item["metadata"].get("annotations") or {})
    pattern = f"(?:{_POD}|{_CONTAINER}){_SECURITY}"
    return "OpenShift's security context constraints" if annotated and re.fullmatch(pattern, found.where) else None


def _explain_metadata(_item: Object, found: Difference, _around: Surroundings) -> str | None:
    """A label or annotation of a platform's domain, or a finalizer, which controllers set."""
    if found.path[:2] == ("metadata", "finalizers"):
        return "a controller"
    if len(found.path) < 2 or found.path[-2] not in ("labels", "annotations"):
        return None
    key = found.path[-1]
    if any(key.startswith(prefix) for prefix in _BEHAVIOUR_KEYS):
        return None
    domain, slash, _ = key.partition("/")
    known = slash and any(domain == name or domain.endswith(f".{name}") for name in _PLATFORM_DOMAINS)
    return "the platform" if known or key == "pod-template-hash" else None


def _explain_toleration(_item: Object, found: Difference, _around: Surroundings) -> str | None:
    if len(found.path) < 2 or found.path[-2] != "tolerations" or not isinstance(found.live, dict):
        return None
    return "an admission plugin" if _TOLERATED.match(str(found.live.get("key", ""))) else None


def _explain_requests(item: Object, found: Difference, _around: Surroundings) -> str | None:
    """A request that the API server copied from the container's limit."""
    if len(found.path) < 2 or found.path[-2] != "requests":
        return None
    limits = _at(item, found.path[:-2]).get("limits") or {}
    return "default from the limit" if limits.get(found.path[-1]) == found.live else None


def _explain_limit_range(item: Object, found: Difference, around: Surroundings) -> str | None:
    """A default of a LimitRange that the namespace had before the stage was deployed."""
    if not {"requests", "limits"} & set(found.path[-2:-1]):
        return None
    kind = "default" if found.path[-2] == "limits" else "defaultRequest"
    annotated = _LIMIT_RANGER in (item["metadata"].get("annotations") or {})
    values = limit_defaults(around.limit_ranges, kind, found.path[-1])
    return "LimitRange" if annotated and found.live in values else None


def limit_defaults(ranges: Iterable[Object], kind: str, resource: str) -> dict[Any, str]:
    """The defaults of LimitRanges for a resource of containers: value to the LimitRange's name."""
    found = {}
    for one in ranges:
        for entry in one["spec"].get("limits") or []:
            value = (entry.get(kind) or entry.get("default") or {}).get(resource)
            if entry.get("type") == "Container" and value is not None:
                found[value] = str(one["metadata"]["name"])
    return found


def _explain_injection(item: Object, found: Difference, _around: Surroundings) -> str | None:
    """A container or volume that an injector declares in an annotation of the pod."""
    if item.get("kind") != "Pod" or len(found.path) < 3:
        return None
    annotations = item["metadata"].get("annotations") or {}
    name = found.path[2].strip("[]")
    if _ISTIO in annotations and name in _istio_names(annotations[_ISTIO]):
        return "Istio's injector"
    for annotation, names in _INJECTORS.items():
        if annotation in annotations and any(name == one or name.startswith(one) for one in names):
            return annotation
    return None


def explain_change(item: Object, found: Difference) -> str | None:
    """Which part of the platform replaced a declared value; None where no part is known to."""
    annotations = item["metadata"].get("annotations") or {}
    if item.get("kind") != "Pod":
        return None
    if _ISTIO in annotations and re.match(_PROBE + "(?:httpGet|tcpSocket|grpc)", found.where):
        return "Istio's injector"  # it sends probes through its agent
    if found.where.endswith(".imagePullPolicy") and found.live == "Always":
        return "admission plugin AlwaysPullImages"
    return None


def _istio_names(status: str) -> list[str]:
    try:
        data = json.loads(status)
    except ValueError:
        return []
    parts = ("containers", "initContainers", "volumes", "imagePullSecrets")
    return [str(name) for part in parts for name in data.get(part) or []] if isinstance(data, dict) else []


_EXPLAINERS: tuple[Callable[[Object, Difference, Surroundings], str | None], ...] = (
    _explain_by_field,
    _explain_security,
    _explain_metadata,
    _explain_toleration,
    _explain_requests,
    _explain_limit_range,
    _explain_injection,
)


def _at(item: Any, path: Path) -> Object:
    """The map at a path; empty where there is none."""
    for index, step in enumerate(path):
        if step.startswith("[") and isinstance(item, list):
            names = (step[1:-1],)
            item = next((one for one in item if isinstance(one, dict) and str(one.get("name")) in names), {})
        else:
            item = item.get(step) if isinstance(item, dict) else None
        if item is None or index > len(path):
            return {}
    return item if isinstance(item, dict) else {}
