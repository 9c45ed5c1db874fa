"""Bearer tokens that change while a run goes on: of a file that is rotated, and of a credential plugin."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Protocol

from pytest_vllm_stage.cluster.credential_plugin import CredentialPlugin, Credentials
from pytest_vllm_stage.cluster.kubeconfig_fields import check_token
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.files import read_text

#: A plugin is asked again this long before its token expires.
EARLY_S = 30.0


class TokenSource(Protocol):
    """Gives the token of each request."""

    def current(self) -> str:
        """The token to send now."""

    def renew(self) -> str:
        """The token after the API server has refused the current one."""


class TokenFile:
    """A file that another program rotates; it is read for each request.

    Raises:
        ConfigError: it cannot be read at first, is empty, or holds no token; the value is not shown.
    """

    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where
        self._token = self._read()

    def current(self) -> str:
        with contextlib.suppress(ConfigError):  # it is being replaced: the token before is valid for a while
            self._token = self._read()
        return self._token

    def renew(self) -> str:
        return self.current()

    def _read(self) -> str:
        token = read_text(self._path, self._where).strip()
        if not token:
            raise ConfigError(f"{self._where} {self._path} is empty")
        return check_token(token, f"{self._where} {self._path}")


class PluginToken:
    """The token of a credential plugin, which runs again when the token expires or is refused."""

    def __init__(self, plugin: CredentialPlugin, first: Credentials) -> None:
        self._plugin, self._last = plugin, first
        self._lock = threading.Lock()

    def current(self) -> str:
        with self._lock:
            expires_at = self._last.expires_at
            if expires_at is not None and time.time() > expires_at - EARLY_S:
                self._last = self._plugin.run()
            return self._last.token

    def renew(self) -> str:
        with self._lock:
            self._last = self._plugin.run()
            return self._last.token
