"""What the settings point at on this machine, checked before anything is collected: files only, never the network."""

from __future__ import annotations

from pytest_vllm_stage.settings.config import StageConfig


def check_inputs(config: StageConfig) -> None:
    """Refuse a kept stage or a context that does not exist, and secrets that cannot be read.

    Raises:
        ConfigError: naming the setting or the file, and what is valid.
    """
    if config.reuse:
        from pytest_vllm_stage.session import kept

        kept.find(config.reuse)
    elif config.context:
        from pytest_vllm_stage.cluster import kubeconfig_files

        kubeconfig_files.read(kubeconfig_files.configured_paths()).entries_of(config.context)
    if config.deploys and config.env_file and not config.reuse:
        from pytest_vllm_stage.stage.deploy import secrets

        secrets.load(config.profile.overlay, config.env_file)
