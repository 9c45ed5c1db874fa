"""Which kinds a cluster serves, requested once per connection."""

from __future__ import annotations

import json
import os
from typing import Any

from kubernetes.dynamic import LazyDiscoverer, Resource
from kubernetes.dynamic.discovery import ResourceGroup
from kubernetes.dynamic.resource import ResourceList

#: All groups and resources in one answer; a server before Kubernetes 1.30 ignores the first choice.
_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"


class InMemoryDiscoverer(LazyDiscoverer):
    """Discovery in two requests, as kubectl does it, and without the library's cache file.

    The library would cache in a file with a guessable name in the shared temporary folder, and read what another
    user has put there: https://github.com/kubernetes-client/python/blob/v37.0.1/kubernetes/dynamic/discovery.py
    The base class looks up an unknown kind again: it may have just been installed.
    """

    def __init__(self, client: Any, cache_file: str | None = None) -> None:
        super().__init__(client, cache_file or os.path.join(os.devnull, "no-cache-file"))  # type: ignore[no-untyped-call]

    def _write_cache(self) -> None:
        """Keep nothing on disk."""

    def parse_api_groups(self, request_resources: bool = False, update: bool = False) -> dict[str, Any]:
        """Prefix to group to version to its resources, in the server's own order of preference."""
        cache: dict[str, Any] = self._cache
        if cache.get("resources") and not update:
            return dict(cache["resources"])
        core, named = self._aggregated("/api"), self._aggregated("/apis")
        if core is None or named is None:
            return dict(super().parse_api_groups(request_resources, update))  # type: ignore[no-untyped-call]
        found: dict[str, Any] = {"api": {}, "apis": {}}
        for prefix, groups in (("api", core), ("apis", named)):
            for group in groups:
                name = group["metadata"].get("name", "")
                found[prefix][name] = self._versions_of(prefix, name, group.get("versions") or [])
        found["apis"][""] = {"v1": ResourceGroup(True, resources={"List": [ResourceList(self.client)]})}
        cache["resources"] = found
        return found

    def _aggregated(self, path: str) -> list[dict[str, Any]] | None:
        """The groups of an aggregated answer; None where the server gives the old form."""
        response = self.client.request("get", path, serialize=False, header_params={"Accept": _AGGREGATED})
        answer = json.loads(response.data)
        return list(answer["items"]) if answer.get("kind") == "APIGroupDiscoveryList" else None

    def _versions_of(self, prefix: str, group: str, versions: list[dict[str, Any]]) -> dict[str, Any]:
        found = {}
        for index, entry in enumerate(versions):
            resources: dict[str, list[Resource]] = {}
            place: dict[str, Any] = {
                "prefix": prefix,
                "group": group,
                "api_version": entry["version"],
                "preferred": index == 0,
            }
            for item in entry.get("resources") or []:
                kind = (item.get("responseKind") or {}).get("kind")
                if kind:
                    listing = ResourceList(self.client, group=group, api_version=entry["version"], base_kind=kind)
                    resources.setdefault(kind, []).append(Resource(client=self.client, **place, **_described(item)))
                    resources.setdefault(listing.kind, []).append(listing)
            found[entry["version"]] = ResourceGroup(index == 0, resources=resources)
        return found


def _described(item: dict[str, Any]) -> dict[str, Any]:
    """Convert a resource of the aggregated form to the old form."""
    kind, namespaced = item["responseKind"]["kind"], item.get("scope") == "Namespaced"
    subresources = {
        found["subresource"]: {
            "name": f"{item['resource']}/{found['subresource']}",
            "kind": (found.get("responseKind") or {}).get("kind", kind),
            "namespaced": namespaced,
            "verbs": found.get("verbs") or [],
        }
        for found in item.get("subresources") or []
    }
    return {
        "kind": kind,
        "name": item["resource"],
        "namespaced": namespaced,
        "verbs": item.get("verbs") or [],
        "singularName": item.get("singularResource"),
        "shortNames": item.get("shortNames"),
        "categories": item.get("categories"),
        "subresources": subresources,
    }
