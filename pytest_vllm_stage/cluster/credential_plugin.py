"""Runs a kubeconfig's credential plugin (``exec``) by the rules of kubectl.

The client's loader knows neither ``interactiveMode`` nor ``installHint``, gives the plugin the test run's own terminal,
waits for it without limit, and goes on without credentials where it fails:
https://github.com/kubernetes-client/python/blob/v37.0.1/kubernetes/config/exec_provider.py
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytest_vllm_stage.cluster.kubeconfig_fields import check_token
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable

Fields = Mapping[str, Any]
_GROUP = "client.authentication.k8s.io"
_VERSIONS = (f"{_GROUP}/v1", f"{_GROUP}/v1beta1")
_MODES = ("Never", "IfAvailable", "Always")
#: A plugin that opens a browser waits for its user.
TIMEOUT_S = 60.0
_LONGEST_QUOTE = 300
#: Fields of a cluster that ``provideClusterInfo`` passes on as they are.
_PASSED_ON = ("server", "tls-server-name", "insecure-skip-tls-verify", "proxy-url", "disable-compression")


@dataclass(frozen=True)
class Credentials:
    """What a plugin answered.

    A certificate is used as long as the process lives; a token is renewed, see `token_sources`.

    Attributes:
        token: The bearer token; empty where it answered a certificate alone.
        certificate: PEM text of a client certificate; empty without one.
        key: PEM text of its key.
        expires_at: Seconds since the epoch; None where it does not say.
    """

    token: str = ""
    certificate: str = ""
    key: str = ""
    expires_at: float | None = None


@dataclass(frozen=True)
class CredentialPlugin:
    """A plugin that can be run.

    Attributes:
        fields: The user's ``exec``.
        cluster: The cluster's fields, with absolute paths.
        where: File and user, for errors.
        folder: The file's folder: a command with a slash is relative to it.
    """

    fields: Fields
    cluster: Fields
    where: str
    folder: Path

    def check(self) -> None:
        """Refuse what kubectl refuses.

        Raises:
            ConfigError: names the field.
        """
        where = f"{self.where}: exec"
        for name, kind in (("command", str), ("apiVersion", str), ("args", list), ("env", list), ("installHint", str)):
            value = self.fields.get(name)
            if value is not None and not isinstance(value, kind):
                raise ConfigError(f"{where}: {name}: expected {kind.__name__}, got {type(value).__name__}")
        if not self.fields.get("command"):
            raise ConfigError(f"{where}: command: expected a program, got none")
        version, mode = self.fields.get("apiVersion"), self.fields.get("interactiveMode")
        if version not in _VERSIONS:
            raise ConfigError(f"{where}: apiVersion: expected {' or '.join(_VERSIONS)}, got {version or 'none'}")
        if mode not in _MODES and (mode or version == _VERSIONS[0]):
            raise ConfigError(f"{where}: interactiveMode: expected {', '.join(_MODES)}, got {mode or 'none'}")
        if mode == "Always":
            raise ConfigError(
                f"{where}: interactiveMode Always: a test run has no terminal for the plugin",
                hint="use a plugin that keeps its login, or a context with a token",
            )
        for entry in self.fields.get("env") or []:
            if not isinstance(entry, dict) or not entry.get("name"):
                raise ConfigError(f"{where}: env: expected a list of name and value")

    def run(self) -> Credentials:
        """The credentials that the plugin gives now.

        Raises:
            ConfigError: see `check`.
            EnvironmentUnusable: it is missing, fails, or answers none; what it printed is never shown.
        """
        self.check()
        return self._read(self._run(self._find()))

    def _find(self) -> str:
        named = str(self.fields["command"])
        found = str(self.folder / named) if os.sep in named else shutil.which(named)
        if found and os.access(found, os.X_OK) and Path(found).is_file():
            return found
        hint = " ".join(str(self.fields.get("installHint") or "").split())[:_LONGEST_QUOTE]
        raise self._failed(f"{named} does not exist or is not executable", hint or f"install {named}")

    def _run(self, program: str) -> str:
        arguments = [str(argument) for argument in self.fields.get("args") or []]
        own = {str(entry["name"]): str(entry.get("value") or "") for entry in self.fields.get("env") or []}
        environment = {**os.environ, **own, "KUBERNETES_EXEC_INFO": json.dumps(self._info())}
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        try:
            process = subprocess.Popen([program, *arguments], env=environment, start_new_session=True, **pipes)
        except OSError as error:
            raise self._failed(f"{program} cannot be started: {error.strerror}") from None
        try:
            printed, reported = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise self._failed(f"{program} did not end within {TIMEOUT_S:g} s; it may wait for a login") from None
        if process.returncode:
            text = " ".join(reported.decode("utf-8", "replace").split())[-_LONGEST_QUOTE:] or "it printed no reason"
            raise self._failed(f"{program} ended with exit code {process.returncode}: {text}")
        return str(printed, "utf-8", "replace")

    def _info(self) -> dict[str, Any]:
        """The value of ``KUBERNETES_EXEC_INFO``."""
        spec: dict[str, Any] = {"interactive": False}
        if self.fields.get("provideClusterInfo"):
            spec["cluster"] = {name: self.cluster[name] for name in _PASSED_ON if self.cluster.get(name)}
            data, file = self.cluster.get("certificate-authority-data"), self.cluster.get("certificate-authority")
            if not data and file:
                data = base64.b64encode(Path(file).read_bytes()).decode()
            spec["cluster"] |= {"certificate-authority-data": data} if data else {}
            for extension in self.cluster.get("extensions") or []:
                if extension.get("name") == f"{_GROUP}/exec":
                    spec["cluster"]["config"] = extension.get("extension")
        return {"apiVersion": self.fields["apiVersion"], "kind": "ExecCredential", "spec": spec}

    def _read(self, printed: str) -> Credentials:
        try:
            answer = json.loads(printed)
        except ValueError:
            raise self._failed(f"expected an ExecCredential as JSON, got {len(printed)} other characters") from None
        if not isinstance(answer, dict) or answer.get("kind") != "ExecCredential":
            raise self._failed("expected a JSON object of kind ExecCredential, got another one")
        if answer.get("apiVersion") != self.fields["apiVersion"]:
            expected, got = self.fields["apiVersion"], str(answer.get("apiVersion"))[:80]
            raise self._failed(f"expected apiVersion {expected}, as the kubeconfig has it, got {got}")
        status = answer.get("status")
        if not isinstance(status, dict):
            raise self._failed("its ExecCredential has no status")
        token, certificate, key = (
            str(status.get(name) or "") for name in ("token", "clientCertificateData", "clientKeyData")
        )
        if bool(certificate) != bool(key):
            raise self._failed("expected clientCertificateData and clientKeyData, got one of them")
        if not token and not certificate:
            raise self._failed("its status has neither a token nor a client certificate")
        check_token(token, f"{self.where}: the credential plugin's token")
        return Credentials(token, certificate, key, self._parse_time(status.get("expirationTimestamp")))

    def _parse_time(self, text: object) -> float | None:
        if not text:
            return None
        try:
            parsed = datetime.fromisoformat(str(text))
        except ValueError:
            raise self._failed(f"expirationTimestamp: expected RFC 3339, got {str(text)[:40]!r}") from None
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()

    def _failed(self, why: str, hint: str = "log in again") -> EnvironmentUnusable:
        return EnvironmentUnusable(f"{self.where}: the credential plugin failed: {why}", hint=hint)
