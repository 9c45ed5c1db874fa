"""Settings of a simulated engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The engine's size and pace.

    Attributes:
        model: The served model name.
        max_model_len: Context length in tokens.
        max_num_seqs: Requests that run at once; the others wait in order of arrival.
        ttft_ms: Time from the start of a request to its first token, before prefill.
        prefill_tokens_per_s: Prompt tokens prefilled per second; those in the prefix cache take no time.
        itl_ms: Time between two tokens of a request that runs alone.
        itl_growth: Fraction of ``itl_ms`` added by each further running request.
        jitter: Sigma of the lognormal factor on each request's times; 0 makes them exact.
        block_size: Tokens per block of the prefix cache.
        kv_cache_tokens: Tokens that the KV cache holds.
        seed: Decides every answer and every drawn time.
    """

    model: str = "sim"
    max_model_len: int = 8192
    max_num_seqs: int = 256
    ttft_ms: float = 20.0
    prefill_tokens_per_s: float = 20_000.0
    itl_ms: float = 10.0
    itl_growth: float = 0.01
    jitter: float = 0.0
    block_size: int = 16
    kv_cache_tokens: int = 1_000_000
    seed: int = 0
