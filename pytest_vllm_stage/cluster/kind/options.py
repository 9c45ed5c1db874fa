"""What a user gives kind: a configuration of the cluster, and image archives for its nodes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_stage.core.errors import ConfigError

#: A file with node image, mounts and mirrors, as kind reads it: https://kind.sigs.k8s.io/docs/user/configuration/
CONFIG_VARIABLE = "VLLM_STAGE_KIND_CONFIG"
#: A folder of archives, each written by ``docker save`` or in the OCI layout.
IMAGES_VARIABLE = "VLLM_STAGE_KIND_IMAGES"


@dataclass(frozen=True)
class KindOptions:
    """The user's choices.

    Attributes:
        config: The configuration's file; None for one node of kind's default image.
        archives: Images that are loaded into each node.
    """

    config: Path | None = None
    archives: tuple[Path, ...] = ()


def read_options(environment: Mapping[str, str] = os.environ) -> KindOptions:
    """The options of this environment.

    Raises:
        ConfigError: a file or folder that a variable names does not exist, or has no archive.
    """
    config, folder = environment.get(CONFIG_VARIABLE, ""), environment.get(IMAGES_VARIABLE, "")
    if config and not Path(config).is_file():
        raise ConfigError(f"{CONFIG_VARIABLE}: {config} is not a file; expected kind's cluster configuration, in YAML")
    archives = tuple(sorted(Path(folder).glob("*.tar"))) if folder else ()
    if folder and not archives:
        raise ConfigError(
            f"{IMAGES_VARIABLE}: {folder} has no image archive; expected a folder with *.tar files",
            hint=f"docker save IMAGE > {folder}/IMAGE.tar",
        )
    return KindOptions(Path(config).absolute() if config else None, archives)
