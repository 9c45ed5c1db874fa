"""What a line in a log means: the runbook's symptoms, most specific first. Pure functions over text."""

from __future__ import annotations

import re
from collections.abc import Iterable

_PATH = r"['\"](?P<path>/[^'\"]+)['\"]"
#: Pattern of a log line, and the cause in the runbook's terms; ``{line}`` is the matched line itself, cut.
_SYMPTOMS: tuple[tuple[str, str], ...] = (
    # Our own loader and bucket Job say the cause themselves.
    (r"^error: (?P<cause>.+)$", "{cause}"),
    (rf"HFValidationError.*{_PATH}", "model path {path} does not exist (vLLM: {line})"),
    (rf"Repo id must .*{_PATH}", "model path {path} does not exist (vLLM: {line})"),
    (
        rf"[Ii]nvalid repository ID or local directory specified: {_PATH}",
        "model path {path} does not exist (vLLM: {line})",
    ),
    (
        rf"(?:Can't load|Unable to load|couldn't find).*{_PATH}",
        "model path {path} does not hold a model (vLLM: {line})",
    ),
    (rf"FileNotFoundError.*No such file or directory: {_PATH}", "file {path} does not exist (vLLM: {line})"),
    (r"Error while deserializing header|SafetensorError", "weights unreadable (vLLM: {line})"),
    (
        r"not initialized from checkpoint|size mismatch|mat1 and mat2 shapes",
        "weights do not fit the model (vLLM: {line})",
    ),
    (
        r"(?P<name>VLLM_PORT|\b[A-Z_]+_PORT)\b.*?(?P<value>tcp://[^\s'\"]+)",
        "{name} is {value}: Kubernetes sets it for a Service of that name; rename the Service, or set "
        "enableServiceLinks: false",
    ),
    (
        r"invalid literal for int\(\) with base 10: '(?P<value>tcp://[^']+)'",
        "a port variable is {value}: Kubernetes sets it for a Service named as the program; rename the Service, or set "
        "enableServiceLinks: false",
    ),
    (r"unrecognized arguments?: (?P<rest>.+)", "unknown serving argument {rest} (vLLM: {line})"),
    (r"error: argument (?P<rest>.+)", "bad serving argument {rest}"),
    (r"max_model_len.*(?:greater|larger) than", "max-model-len does not fit the model (vLLM: {line})"),
    (r"CUDA out of memory|OutOfMemoryError", "GPU memory is too small (vLLM: {line})"),
    (
        r"No available memory for the cache blocks|larger than the maximum number of tokens|KV cache is needed",
        "no memory for the KV cache (vLLM: {line})",
    ),
    (
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver",
        "no GPU in the pod (vLLM: {line})",
    ),
    (r"[Aa]ddress already in use", "port is taken (vLLM: {line})"),
    (
        r"(?:401|403) (?:Client Error|Unauthorized|Forbidden)|GatedRepoError|Invalid user token",
        "token refused ({line})",
    ),
    (r"No space left on device", "volume is full ({line})"),
    (r"ModuleNotFoundError: ", "the image lacks a module ({line})"),
    (r"ImportError: ", "a module cannot be loaded ({line})"),
    (r"Invalid credentials|MINIO_ROOT_(?:USER|PASSWORD).*(?:length|should)", "MinIO refuses its credentials ({line})"),
)
SYMPTOMS = tuple((re.compile(pattern), meaning) for pattern, meaning in _SYMPTOMS)
LONGEST_QUOTE = 240
#: Lines that say how a process ended without saying why.
_NOISE = re.compile(
    r"^\s*(?:File \"|\^|~|raise |return |self\.|await |with |During handling|The above exception|\.\.\.)"
)


def cause_of(lines: Iterable[str]) -> str | None:
    """The cause that a log shows, or None where no line is known; a symptom listed first wins over a later one."""
    read = [line.strip() for line in lines]
    for pattern, meaning in SYMPTOMS:
        for line in read:
            match = pattern.search(line)
            if match:
                return meaning.format(line=cut(_message(line)), **match.groupdict())
    return None


def cut(text: str, longest: int = LONGEST_QUOTE) -> str:
    """The text on one line, at most so long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


def _message(line: str) -> str:
    """A vLLM log line without its prefix (process, level, time, source)."""
    return re.sub(r"^(?:\([^)]*\)\s*)?(?:(?:ERROR|WARNING|INFO|CRITICAL)\s+\S+\s+\S+\s+\[[^\]]*\]\s*)?", "", line)


def informative_lines(lines: Iterable[str], most: int) -> list[str]:
    """The last lines of a log that say something: no code excerpts of tracebacks, no blanks."""
    said = [line.rstrip() for line in lines if line.strip() and not _NOISE.match(_message(line))]
    return [cut(line, 300) for line in said[-most:]]
