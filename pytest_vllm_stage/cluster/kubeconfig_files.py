"""Kubeconfig files: read, merged as kubectl merges them, and loaded into the official client's configuration.

Of several files in ``$KUBECONFIG`` the first that has an entry of a name wins, and a relative path in an entry is
relative to the file that holds the entry: https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/
The client's own merger answers an empty file, a wrong encoding or a dangling reference with a traceback or not at all,
so reading and merging are done here, and credentials by the client's loader, but for those that change in mid-run.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml

from pytest_vllm_stage.cluster.credential_plugin import CredentialPlugin
from pytest_vllm_stage.cluster.kubeconfig_fields import check_cluster, check_user, impersonation_headers
from pytest_vllm_stage.cluster.token_sources import PluginToken, TokenFile, TokenSource
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.files import is_missing, read_text
from pytest_vllm_stage.core.suggestions import suggest_name

if TYPE_CHECKING:
    from kubernetes.client import Configuration

_SECTIONS = {"contexts": "context", "clusters": "cluster", "users": "user"}
_PATH_FIELDS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")


@dataclass(frozen=True)
class Entry:
    """One named entry of a kubeconfig.

    Attributes:
        value: Its fields, for example ``server`` of a cluster.
        path: The file that holds it.
    """

    value: Mapping[str, Any]
    path: Path


@dataclass(frozen=True)
class Kubeconfig:
    """The merged content of several files.

    Attributes:
        paths: The files, as they were named.
        contexts: Name to context.
        clusters: Name to cluster.
        users: Name to user.
    """

    paths: tuple[Path, ...]
    contexts: Mapping[str, Entry]
    clusters: Mapping[str, Entry]
    users: Mapping[str, Entry]

    @property
    def places(self) -> str:
        """The files for an error message, with those that do not exist marked."""
        return ", ".join(str(path) if path.is_file() else f"{path} (does not exist)" for path in self.paths)

    def entries_of(self, context: str) -> tuple[Entry, Entry | None]:
        """Cluster and user of a context; a context may name no user.

        Raises:
            ConfigError: there is no such context, or it refers to an entry that no file defines; names both.
        """
        found = self.contexts.get(context)
        if found is None:
            raise ConfigError(
                f"--stage-context={context}: no such context in {self.places}"
                f"{suggest_name(context, self.contexts)}; valid: {_listed(self.contexts)}",
                hint="kubectl config get-contexts",
            )
        cluster = self._referred(context, found, "cluster", self.clusters)
        if cluster is None:
            raise ConfigError(f"kubeconfig {found.path}: context {context} names no cluster")
        server = cluster.value.get("server")
        where = f"kubeconfig {cluster.path}: cluster {found.value['cluster']}"
        if not server:
            raise ConfigError(f"{where} names no server")
        if not isinstance(server, str) or urlsplit(server).scheme not in ("http", "https"):
            raise ConfigError(f"{where}: server: expected an http or https URL, got {server!r}")
        user = self._referred(context, found, "user", self.users)
        check_cluster(cluster.value, f"kubeconfig {cluster.path}: cluster of context {context}")
        if user is not None:
            check_user(user.value, f"kubeconfig {user.path}: user of context {context}")
        return cluster, user

    def _referred(self, context: str, found: Entry, field: str, entries: Mapping[str, Entry]) -> Entry | None:
        name = found.value.get(field)
        if not name:
            return None
        if not isinstance(name, str):
            where = f"kubeconfig {found.path}: context {context}: {field}"
            raise ConfigError(f"{where}: expected a string, got {type(name).__name__}")
        if name not in entries:
            raise ConfigError(
                f"kubeconfig {found.path}: context {context} names {field} {name}, which no file defines "
                f"({self.places}); valid: {_listed(entries)}"
            )
        return entries[name]


def _listed(names: Mapping[str, Entry]) -> str:
    return ", ".join(names) or "none"


def configured_paths() -> str:
    """The files of ``$KUBECONFIG``, else the user's own, as absolute paths in the form of ``$KUBECONFIG``."""
    named = [entry for entry in os.environ.get("KUBECONFIG", "").split(os.pathsep) if entry]
    paths = [Path(entry).expanduser().absolute() for entry in named] or [Path.home() / ".kube" / "config"]
    return os.pathsep.join(map(str, dict.fromkeys(paths)))


def read(paths: str) -> Kubeconfig:
    """Read and merge files; one that does not exist is left out, as kubectl does.

    Raises:
        ConfigError: a file cannot be read, or is not a kubeconfig; names the file and the entry, never a value.
    """
    files = tuple(map(Path, paths.split(os.pathsep)))
    merged: dict[str, dict[str, Entry]] = {section: {} for section in _SECTIONS}
    for path in files:
        data = {} if is_missing(path) else _parse(path)
        for section, field in _SECTIONS.items():
            for name, value in _named_entries(data.get(section), section, field, path).items():
                merged[section].setdefault(name, Entry(value, path))
    return Kubeconfig(files, **merged)


def _parse(path: Path) -> dict[str, Any]:
    text = read_text(path, "kubeconfig")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:  # its text quotes the file, which holds secrets
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise ConfigError(f"kubeconfig {path}{line} is not YAML: {problem}") from None
    except (ValueError, RecursionError) as error:  # a date or number that cannot be, or too many levels
        raise ConfigError(f"kubeconfig {path} is not YAML: {type(error).__name__} in a value") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"kubeconfig {path}: expected a mapping, got {type(data).__name__}")
    return data


def _named_entries(listed: Any, section: str, field: str, path: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(listed, list | None):
        raise ConfigError(f"kubeconfig {path}: {section}: expected a list, got {type(listed).__name__}")
    found: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(listed or []):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise ConfigError(f"kubeconfig {path}: {section}[{index}]: expected a mapping with a name")
        value = entry.get(field)
        if not isinstance(value, dict | None):
            raise ConfigError(f"kubeconfig {path}: {section}[{index}] ({name}): {field}: expected a mapping")
        if name in found:
            raise ConfigError(f"kubeconfig {path}: {section}: {name} is defined twice")
        found[name] = value or {}
    return found


@dataclass(frozen=True)
class ContextIdentity:
    """Who a context's requests are sent as, besides what the client's configuration holds.

    Attributes:
        tokens: Gives the token of each request; None where it does not change.
        impersonation: Headers of a user that acts as another.
    """

    tokens: TokenSource | None = None
    impersonation: tuple[tuple[str, str], ...] = ()


def load(paths: str, context: str, configuration: Configuration, folder: str) -> ContextIdentity:
    """Fill the client's configuration for a context.

    Args:
        paths: The files, as in ``$KUBECONFIG``.
        context: The context.
        configuration: Receives server, certificates and credentials.
        folder: Receives certificates and keys that the kubeconfig holds inline; the caller removes it.

    Raises:
        ConfigError: the files or the context are wrong.
        EnvironmentUnusable: a credential plugin failed.
    """
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.config.kube_config import ConfigNode, KubeConfigLoader

    cluster, user = read(paths).entries_of(context)
    fields = _with_absolute_paths(cluster)
    lists = {
        "contexts": [ConfigNode("context", {"name": context, "context": {"cluster": "c", "user": "u"}})],
        "clusters": [ConfigNode("cluster", {"name": "c", "cluster": fields}, str(cluster.path))],
    }
    tokens = None
    if user is not None:
        who, tokens = _with_first_token(user, fields)
        lists["users"] = [ConfigNode("user", {"name": "u", "user": who}, str(user.path))]
    where = f"kubeconfig {user.path if user else cluster.path}, context {context}"
    try:
        loader = KubeConfigLoader(ConfigNode("kubeconfig", lists), context, None, None, temp_file_path=folder)
        loader.load_and_set(configuration)
    except ConfigException as error:
        raise ConfigError(f"{where}: {error}") from None
    except (ValueError, KeyError, TypeError, OSError) as error:  # for example an auth-provider without its package
        raise ConfigError(f"{where}: credentials cannot be loaded ({type(error).__name__})") from None
    _use_proxy(configuration, str(fields.get("proxy-url") or ""))
    return ContextIdentity(tokens, impersonation_headers(user.value) if user else ())


def _with_absolute_paths(entry: Entry) -> dict[str, Any]:
    """The entry's fields; the client's loader takes a user's paths to be relative to the cluster's file."""
    fields, folder = dict(entry.value), entry.path.parent
    for field in set(_PATH_FIELDS) & set(fields):
        if fields[field]:
            fields[field] = str(folder / str(fields[field]))
    return fields


def _with_first_token(user: Entry, cluster: Mapping[str, Any]) -> tuple[dict[str, Any], TokenSource | None]:
    """The user's fields with the token of their ``tokenFile`` or plugin, and what gives the next ones.

    As in kubectl, a file's token precedes a plain one, and a plain one precedes a plugin.
    """
    fields = _with_absolute_paths(user)
    file, plugin = fields.pop("tokenFile", None), fields.pop("exec", None)
    if file:
        source = TokenFile(Path(file), f"kubeconfig {user.path}: tokenFile")
        return {**fields, "token": source.current()}, source
    if not plugin:
        return fields, None
    runnable = CredentialPlugin(plugin, cluster, f"kubeconfig {user.path}", user.path.parent)
    runnable.check()
    if fields.get("token") or fields.get("username"):
        return fields, None
    answer = runnable.run()
    if answer.certificate:
        pems = {"client-certificate": answer.certificate, "client-key": answer.key}
        fields |= {f"{name}-data": base64.b64encode(pem.encode()).decode() for name, pem in pems.items()}
    if not answer.token:
        return fields, None
    return {**fields, "token": answer.token}, PluginToken(runnable, answer)


def _use_proxy(configuration: Configuration, url: str) -> None:
    """Credentials of the proxy's URL are sent, and a SOCKS proxy resolves the server's name, as Go's client does both.

    https://github.com/urllib3/urllib3/issues/1850
    """
    from urllib3.util import make_headers

    parts = urlsplit(url)
    if parts.username:
        basic = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        configuration.proxy_headers = make_headers(proxy_basic_auth=basic)
    if parts.scheme == "socks5":
        configuration.proxy = f"socks5h{url[len('socks5') :]}"
