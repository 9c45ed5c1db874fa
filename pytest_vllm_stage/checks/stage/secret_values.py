"""Secrets that a manifest shows, and values of Secrets that no server takes: nothing here repeats a value."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.health import SecretReference

_VARIABLE = re.compile(r"(?:^|_)(?:API_KEY|(?<!MAX_)TOKEN|SECRET(?:_ACCESS)?_KEY|SECRET|PASSWORD|PASSWD)$")
_FLAG = re.compile(r"(?P<flag>--(?:[\w-]+-)?(?:api-key|token|password|secret))(?:=|\s+|$)(?P<value>\S*)")
#: What clients send to a server that asks for no key, and values that are settings rather than secrets, as the special
#: tokens of a model are.
_PLACEHOLDER = re.compile(r"(?i:empty|none|null|dummy|unused|no-key|not-needed|true|false|\d*)|<[^<>]*>|\[[A-Z]+\]")
#: A value that the shell, Kubernetes, kustomize or KServe puts there.
_INSERTED = re.compile(r"\$[({\w]|\{\{")
#: What a template has in the place of a value.
_UNFILLED = re.compile(
    r"(?i:<[^<>]+>|\$\{\w+\}|\{\{[^{}]+\}\}|(?:change|replace)[-_ ]?me|placeholder|todo|"
    r"your[-_ ](?:\w+[-_ ])*(?:token|key|secret|password)|(?:hf_)?x{4,})"
)
#: What MinIO, its charts and its tutorials come with.
_DEFAULTS = (
    ("minioadmin", "minioadmin"),
    ("minio", "minio123"),
    ("minio", "miniopass"),
    ("minio", "minio"),
    ("rootuser", "rootpass123"),
    ("admin", "password"),
    ("admin", "admin123"),
)


def find_plain_secrets(manifests: Iterable[Object]) -> list[str]:
    """Report arguments and variables that hold a secret itself: every reader of the object or its repository has it."""
    lines = []
    for manifest in manifests:
        where = f"{manifest['kind']}/{objects.name_of(manifest)}"
        found = dict.fromkeys(_names_in(manifest.get("spec"))) if manifest["kind"] != "Secret" else {}
        lines += [f"{where}: {name} holds its value in plain text, expected one from a Secret" for name in found]
    return lines


def _names_in(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _names_in(item)
    elif isinstance(value, dict):
        yield from _names_of_container(value)
        for item in value.values():
            yield from _names_in(item)


def _names_of_container(container: Mapping[str, Any]) -> Iterator[str]:
    for entry in container.get("env") or []:
        name, value = (str(entry.get(key) or "") for key in ("name", "value")) if isinstance(entry, dict) else ("", "")
        if _VARIABLE.search(name) and not _PLACEHOLDER.fullmatch(value) and not _INSERTED.search(value):
            yield f"variable {name}"
    words = [container.get(key) for key in ("command", "args")]
    line = " ".join(str(word) for part in words if isinstance(part, list) for word in part)
    for match in _FLAG.finditer(line):
        value = match["value"].strip("'\"")
        if value and not value.isdecimal() and not value.startswith("--") and not _INSERTED.search(value):
            yield f"argument {match['flag']}"


def find_unusable_values(references: Iterable[SecretReference], secrets: Mapping[str, Object]) -> list[str]:
    """Report what a template has in the place of a value, and values of one line with white space around them.

    ``echo VALUE | base64`` leaves a line break, which servers compare and clients send. Texts of several lines end in
    one rightly.
    """
    lines = []
    for ref in references:
        raw = ((secrets.get(ref.secret) or {}).get("data") or {}).get(ref.key or "")
        try:
            value = base64.b64decode(raw or "").decode()
        except ValueError:
            continue  # not a text
        bare = value.strip()
        if _UNFILLED.fullmatch(bare):
            where = f'secret {ref.secret}: the value of key "{ref.key}"'
            lines.append(f"{where} is a template's placeholder ({ref.where} needs it)")
        elif bare and value != bare and "\n" not in bare and not bare.startswith(("{", "[")):
            what = "a line break" if value[len(value.rstrip()) :].count("\n") else "white space"
            end = "begins" if value[0].isspace() else "ends"
            lines.append(f'secret {ref.secret}: the value of key "{ref.key}" {end} with {what} ({ref.where} needs it)')
    return lines


def is_default(access_key: Secret, secret_key: Secret) -> bool:
    """Whether credentials are ones that MinIO or its tutorials publish."""
    return (access_key.reveal(), secret_key.reveal()) in _DEFAULTS
