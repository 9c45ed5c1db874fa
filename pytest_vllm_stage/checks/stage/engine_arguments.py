"""Arguments of vLLM that do not fit its container, its probes or its model: pure functions over declared objects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pytest_vllm_stage.checks.stage.drift.expected import merge_serving_container
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.drift import Demand
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.quantities import parse_quantity

#: Short flags of vLLM with their names.
PARALLEL = {"-tp": "tensor-parallel-size", "-pp": "pipeline-parallel-size", "-dp": "data-parallel-size"}
#: A long or a short flag, and no negative number.
_FLAG = re.compile(r"--?[A-Za-z]")
_SERVER = re.compile(r"vllm\.entrypoints\.openai\.api_server|\bvllm serve\b")
DEFAULT_PORT = "8000"
#: What vLLM's server answers a GET for with 200; below /v1 only with the API key, where one is set.
_PATHS = ("/health", "/ping", "/load", "/version", "/v1/models", "/metrics", "/docs", "/openapi.json")
_LOOPBACK = re.compile(r"127\.\d+\.\d+\.\d+|localhost|::1")
#: vLLM's processes exchange messages through ten chunks of up to 24 MiB, and NCCL's buffers come on top.
LEAST_SHM = "256Mi"
_SHM = "/dev/shm"  # noqa: S108 - a mount, not a temporary file
#: Families of models as names have them.
FAMILY = re.compile(
    r"(?<![a-z])(mistral|mixtral|llama|qwen|granite|gemma|phi|deepseek|falcon|smollm|gpt-oss|nemotron|olmo|glm|kimi)"
)
#: Tool-call parsers that read the format of one family's models; the others read what several families write.
_PARSERS: Mapping[str, tuple[str, ...]] = {
    "mistral": ("mistral", "mixtral"),
    "llama3_json": ("llama", "nemotron"),
    "llama4_json": ("llama",),
    "llama4_pythonic": ("llama",),
    "granite": ("granite",),
    "granite-20b-fc": ("granite",),
    "deepseek_v3": ("deepseek",),
    "deepseek_v31": ("deepseek",),
    # Nemotron 3 writes its calls as Qwen3-Coder does: https://github.com/vllm-project/recipes/pull/408
    "qwen3_coder": ("qwen", "nemotron"),
    "qwen3_xml": ("qwen", "nemotron"),
    "phi4_mini_json": ("phi",),
    "kimi_k2": ("kimi",),
    "glm45": ("glm",),
    "openai": ("gpt-oss",),
}


def read_arguments(args: Sequence[str]) -> dict[str, str]:
    """Flags with their values, by names with hyphens; a flag without a value has an empty one, the last one wins.

    A shell's whole command line may be one argument.
    """
    found: dict[str, str] = {}
    flag = ""
    for word in (word for arg in args for word in arg.split()):
        if _FLAG.match(word):
            name, _, value = word.partition("=")
            flag = PARALLEL.get(name, name.lstrip("-")).replace("_", "-")
            found[flag] = value
        elif flag:
            found[flag] = f"{found[flag]} {word}".strip()
    return found


def find_contradictions(service: Object, runtime: Object, wanted: Demand) -> Iterator[str]:
    """One line per argument that does not fit; nothing is judged that only a configuration file of vLLM may say."""
    words = (*wanted.command, *wanted.args)
    arguments, container = read_arguments(words), merge_serving_container(service, runtime)
    volumes = [*(runtime["spec"].get("volumes") or []), *(service["spec"]["predictor"].get("volumes") or [])]
    yield from _of_shared_memory(volumes, container, arguments)
    yield from _of_parser(service, arguments)
    if not _SERVER.search(" ".join(words)) or "config" in arguments:
        return
    port = arguments.get("port", DEFAULT_PORT)
    if not port.isdecimal():
        return
    yield from _of_port(container, arguments, port)
    yield from _of_probes(container, arguments, port)
    yield from _of_metrics(service, runtime, container, port)


def _of_port(container: Object, arguments: Mapping[str, str], port: str) -> Iterator[str]:
    declared = [str(one.get("containerPort")) for one in container.get("ports") or []]
    if "port" not in arguments and declared and port not in declared:
        yield f"no --port is given, so that the engine listens on {port}; its container declares {', '.join(declared)}"


def _of_probes(container: Object, arguments: Mapping[str, str], port: str) -> Iterator[str]:
    names = {str(one.get("name")): str(one.get("containerPort")) for one in container.get("ports") or []}
    has_key = "api-key" in arguments or any(one.get("name") == "VLLM_API_KEY" for one in container.get("env") or [])
    speaks_tls = "ssl-certfile" in arguments
    for kind in ("startup", "readiness", "liveness"):
        probe = container.get(f"{kind}Probe") or {}
        asked = probe.get("httpGet") or probe.get("tcpSocket") or {}
        number = str(asked.get("port", ""))
        if names.get(number, number) != port:
            continue
        if _LOOPBACK.fullmatch(arguments.get("host", "")) and not asked.get("host"):
            yield f"the engine listens on --host {arguments['host']}, where the {kind} probe does not reach it"
        if not probe.get("httpGet"):
            continue
        path, by_tls = str(asked.get("path") or "/").partition("?")[0], asked.get("scheme") == "HTTPS"
        if path not in _PATHS:
            yield f"the {kind} probe asks {path}, which vLLM does not serve: /health is its health check"
        elif path.startswith("/v1/") and has_key and not asked.get("httpHeaders"):
            yield f"the {kind} probe asks {path}, which answers 401 without the API key: /health needs none"
        if by_tls != speaks_tls:
            asks, speaks = ("HTTPS", "HTTP") if by_tls else ("HTTP", "HTTPS (--ssl-certfile)")
            yield f"the {kind} probe asks by {asks}, the engine speaks {speaks}"


def _of_metrics(service: Object, runtime: Object, container: Object, port: str) -> Iterator[str]:
    found = {**(runtime["spec"].get("annotations") or {}), **(service["metadata"].get("annotations") or {})}
    named = str(found.get("prometheus.io/port") or port)
    if named != port and named not in [str(one.get("containerPort")) for one in container.get("ports") or []]:
        yield f"annotation prometheus.io/port names {named}, and the engine's metrics are on port {port}: none is read"


def _of_shared_memory(found: Sequence[Object], container: Object, arguments: Mapping[str, str]) -> Iterator[str]:
    mounts = [one for one in container.get("volumeMounts") or [] if str(one.get("mountPath", "")).rstrip("/") == _SHM]
    volumes = {one.get("name"): one for one in found}
    made = (volumes.get(mounts[0].get("name")) or {}).get("emptyDir") if mounts else None
    if made is None:
        return
    size = made.get("sizeLimit")
    if made.get("medium") != "Memory":
        yield f"the volume at {_SHM} is on the node's disk: it needs medium: Memory"
    parallel = arguments.get("tensor-parallel-size", "1")
    if size and parallel.isdecimal() and int(parallel) > 1 and parse_quantity(size) < parse_quantity(LEAST_SHM):
        yield f"the volume at {_SHM} has {size}: tensor-parallel-size {parallel} needs at least {LEAST_SHM} there"


def _of_parser(service: Object, arguments: Mapping[str, str]) -> Iterator[str]:
    """A parser that finds no call in what another family's model writes: calls arrive as text."""
    parser = arguments.get("tool-call-parser", "")
    labels = (service["metadata"].get("labels") or {}).values()
    families = set(FAMILY.findall(" ".join([objects.name_of(service), *map(str, labels)]).lower()))
    if families and parser in _PARSERS and not families & set(_PARSERS[parser]):
        named = ", ".join(sorted(families))
        yield f"tool-call-parser {parser} does not read the calls of a {named} model: they arrive as text"
