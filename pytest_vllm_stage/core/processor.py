"""What this machine's processor can do, as far as the local engine depends on it."""

from __future__ import annotations

import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
#: All of AVX-512 that vLLM's CPU kernels need: no processor has this one without the others (F, VL and DQ).
AVX512 = "avx512bw"
#: Which kernels compute the local stage's models, by the name that recorded references state. Without AVX-512 its
#: runtime asks for float32.
AVX512_KERNELS = "cpu-avx512"
FLOAT32_KERNELS = "cpu-float32"
#: Shown with every result of the local engine on a processor without AVX-512.
NO_AVX512_NOTICE = (
    "this processor has no AVX-512, so vLLM has no 4-bit kernel here and computes in float32: the quantized model is a "
    "stand-in, its 4-bit values unpacked, and speeds say nothing about either precision"
)


def has(flag: str) -> bool:
    """Whether the processor has an instruction set, named as in ``/proc/cpuinfo``."""
    return bool(re.search(rf"^flags\s*:.*\b{flag}\b", CPUINFO.read_text(encoding="utf-8"), re.MULTILINE))


def local_kernels() -> str:
    """Which kernels compute the models of the local stage on this processor."""
    return AVX512_KERNELS if has(AVX512) else FLOAT32_KERNELS
