"""The connection to a cluster: the official client, set up as this project needs it.

Every request has a timeout, discovery is cached in memory only, and no credentials are left in files.
"""

from __future__ import annotations

import functools
import ipaddress
import ssl
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import urllib3
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.rest import RESTResponse
from kubernetes.config.config_exception import ConfigException
from kubernetes.config.incluster_config import InClusterConfigLoader
from kubernetes.dynamic import DynamicClient

from pytest_vllm_stage.cluster import kubeconfig_files
from pytest_vllm_stage.cluster.api_errors import translate_api_errors
from pytest_vllm_stage.cluster.discovery import InMemoryDiscoverer
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.cluster.kubeconfig_files import ContextIdentity
from pytest_vllm_stage.cluster.token_sources import TokenSource
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.settings import pod

REQUEST_TIMEOUT_S = 15.0
#: A kept-alive connection that the server has closed meanwhile is reopened once; nothing else is retried.
_RETRIES = urllib3.Retry(
    total=1, connect=0, read=1, redirect=0, status=0, other=0, raise_on_redirect=False, respect_retry_after_header=False
)


class _ApiClient(ApiClient):
    """The library's client, with a default timeout for every request but watches, which may be silent.

    It acts as the user whom the kubeconfig impersonates, and sends a request again with a renewed token after a 401.
    """

    identity = ContextIdentity()

    def call_api(
        self,
        method: str,
        url: str,
        header_params: Any = None,
        body: Any = None,
        post_params: Any = None,
        _request_timeout: Any = None,
    ) -> RESTResponse:
        timeout = _request_timeout or (None if "watch=" in url else (REQUEST_TIMEOUT_S, REQUEST_TIMEOUT_S))
        headers = urllib3.HTTPHeaderDict(header_params or {})
        for name, value in self.identity.impersonation:
            headers.add(name, value)
        with warnings.catch_warnings():
            if not self.configuration.verify_ssl:  # the kubeconfig says so; one warning per request would add nothing
                warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
            answer = super().call_api(method, url, headers, body, post_params, timeout)
            tokens = self.identity.tokens
            if answer.status != HTTPStatus.UNAUTHORIZED or tokens is None:
                return answer
            renewed = f"Bearer {tokens.renew()}"
            if renewed == headers.get("authorization"):
                return answer
            answer.response.drain_conn()
            headers["authorization"] = renewed
            return super().call_api(method, url, headers, body, post_params, timeout)


def connect(paths: str, context: str, *, uses_env_proxy: bool = True) -> DynamicClient:
    """Connect to the cluster of a context and await a first answer; the caller closes its ``client``.

    Args:
        paths: Kubeconfig files, as in ``$KUBECONFIG``.
        context: The context in them.
        uses_env_proxy: Go through the proxy that the environment names; never for addresses of this machine.

    Raises:
        ConfigError: the kubeconfig or its context is wrong.
        EnvironmentUnusable: the API server does not answer, or refuses the credentials; it names the server.
    """
    api = _open_api_client(paths, context, uses_env_proxy=uses_env_proxy)
    return _await_answer(api, f"context {context}")


def connect_to(cluster: ClusterFacts) -> DynamicClient:
    """Connect to a known cluster; the caller closes its ``client``. Raises what `connect` does."""
    if cluster.in_cluster:
        return connect_in_cluster()
    # A proxy of the environment is for the internet: a cluster on this machine is not reached through it.
    return connect(cluster.kubeconfig, cluster.context, uses_env_proxy=not cluster.on_this_machine)


def connect_in_cluster() -> DynamicClient:
    """Connect to the cluster that this process runs in a pod of; the caller closes its ``client``.

    The client's loader reads the ServiceAccount's token again after a minute, since the kubelet rotates it.

    Raises:
        ConfigError: this process is not in a pod, or the pod has no token.
        EnvironmentUnusable: the API server does not answer, or refuses the token.
    """
    configuration = Configuration()
    configuration.retries = _RETRIES
    token, authority = str(pod.SERVICE_ACCOUNT / "token"), str(pod.SERVICE_ACCOUNT / "ca.crt")
    try:
        InClusterConfigLoader(token, authority).load_and_set(configuration)
    except (ConfigException, OSError) as error:
        raise ConfigError(
            f"--stage-cluster=in-cluster: this process has no ServiceAccount of a pod: {error}",
            hint="run it in a pod that mounts its token (automountServiceAccountToken), or name a context: "
            "--stage-context",
        ) from None
    api = _with_tls(configuration, f"ServiceAccount in {pod.SERVICE_ACCOUNT}")
    return _await_answer(api, "in-cluster")


def _await_answer(api: ApiClient, way: str) -> DynamicClient:
    try:
        with translate_api_errors(f"first request to {api.configuration.host} ({way})"):
            return DynamicClient(api, discoverer=InMemoryDiscoverer)
    except BaseException:
        api.close()
        raise


@contextmanager
def connection(paths: str, context: str, *, uses_env_proxy: bool = True) -> Iterator[DynamicClient]:
    """`connect` for a ``with`` statement, which closes the client."""
    connected = connect(paths, context, uses_env_proxy=uses_env_proxy)
    try:
        yield connected
    finally:
        connected.client.close()


def _open_api_client(paths: str, context: str, *, uses_env_proxy: bool) -> ApiClient:
    configuration = Configuration()
    configuration.retries = _RETRIES
    if not uses_env_proxy:
        configuration.proxy = None
    # The loader writes inline keys into files. TLS is set up at once, and the files are gone before the first request.
    with tempfile.TemporaryDirectory(prefix="vllm-stage-") as folder:
        identity = kubeconfig_files.load(paths, context, configuration, folder)
        if identity.tokens is not None:
            configuration.refresh_api_key_hook = functools.partial(_use_current_token, identity.tokens)  # type: ignore[assignment]
        api = _with_tls(configuration, f"kubeconfig {paths}, context {context}")
        api.identity = identity
        return api


def _use_current_token(tokens: TokenSource, configuration: Configuration) -> None:
    configuration.api_key["BearerToken"] = f"Bearer {tokens.current()}"


def _with_tls(configuration: Configuration, where: str) -> _ApiClient:
    """The client of a configuration, whose certificate files are read now and never again."""
    tls = _tls_context(configuration, where)
    configuration.ssl_ca_cert = configuration.cert_file = configuration.key_file = None
    if _is_loopback(configuration.host) and configuration._proxy_from_env:
        configuration.proxy = None
    api = _ApiClient(configuration)
    api.rest_client.pool_manager.connection_pool_kw["ssl_context"] = tls
    return api


def _tls_context(configuration: Configuration, where: str) -> ssl.SSLContext:
    """Verifies as kubectl does: Go does not require the key identifiers that Python 3.13's strict mode requires."""
    context = urllib3.util.create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    field = "certificate-authority"
    try:
        if not configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif configuration.ssl_ca_cert:
            context.load_verify_locations(cafile=configuration.ssl_ca_cert)
        else:
            context.load_default_certs()
        field = "client-certificate and client-key"
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
    except (ssl.SSLError, OSError) as error:
        reason = error.strerror or error
        raise ConfigError(f"{where}: the certificates cannot be loaded: {field}: {reason}") from None
    return context


def _is_loopback(url: str) -> bool:
    """An address of this machine, which kubectl never reaches through a proxy of the environment."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
