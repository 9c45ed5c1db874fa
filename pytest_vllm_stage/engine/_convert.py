"""Make both model folders from the packaged GGUF file; runs inside the engine's environment, as a program.

    python _convert.py SOURCE.gguf FULL_FOLDER QUANTIZED_FOLDER

The full folder holds the GGUF's weights as bfloat16 safetensors. The quantized one holds the same model as W4A16:
4-bit integers, asymmetric, in groups of 32 input channels, in compressed-tensors' ``pack-quantized`` format; the
embedding, which is tied to the output head, stays bfloat16. Values are rounded to nearest, within the range that costs
each group the least squared error: a model this small feels the difference (against the plain minimum and maximum, the
error falls by a quarter, and so does the divergence from the full model's next-token probabilities).

Nothing here is random, so the same pins give the same bytes.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch  # type: ignore[import-not-found, unused-ignore]
from compressed_tensors.compressors import ModelCompressor  # type: ignore[import-not-found, unused-ignore]
from compressed_tensors.quantization import (  # type: ignore[import-not-found, unused-ignore]
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import (  # type: ignore[import-not-found, unused-ignore]
    calculate_qparams,
    is_module_quantized,
)
from transformers import (  # type: ignore[import-not-found, unused-ignore]
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

GROUP_SIZE = 32

#: The ranges tried for a group: its minimum and maximum, each times one of these.
RANGE_FACTORS = (1.0, 0.92, 0.84)

_WEIGHTS = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=GROUP_SIZE, symmetric=False)


def load(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The GGUF's model, as one that never was a GGUF, and its tokenizer.

    A model loaded from a GGUF refuses to be saved: it counts as quantized. Its weights move to a fresh one.
    """
    origin = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name, "local_files_only": True}
    loaded = AutoModelForCausalLM.from_pretrained(**origin, dtype=torch.bfloat16)
    config = loaded.config
    del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    return fresh, AutoTokenizer.from_pretrained(**origin)


def quantize(model: PreTrainedModel) -> ModelCompressor:
    """Quantize the model's linear layers in place; return what writes the matching ``quantization_config``."""
    scheme = QuantizationScheme(targets=["Linear"], weights=_WEIGHTS)
    apply_quantization_config(model, QuantizationConfig(config_groups={"w4a16": scheme}, ignore=["lm_head"]))
    for module in filter(is_module_quantized, model.modules()):
        _set_scales(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    return compressor


def _set_scales(module: torch.nn.Module) -> None:
    """Give each group of a linear layer the scale and zero point with the least squared error among those tried."""
    groups = module.weight.data.float().unflatten(-1, (-1, GROUP_SIZE))
    lowest, highest = groups.amin(-1), groups.amax(-1)
    least = torch.full_like(lowest, torch.inf)
    for low, high in itertools.product(RANGE_FACTORS, repeat=2):
        scale, zero_point = calculate_qparams(lowest * low, highest * high, _WEIGHTS)
        scale = scale.to(module.weight_scale.dtype)
        error = _squared_error(groups, scale.float().unsqueeze(-1), zero_point.float().unsqueeze(-1))
        better = error < least
        least = torch.where(better, error, least)
        module.weight_scale.data[better] = scale[better]
        module.weight_zero_point.data[better] = zero_point[better]


def _squared_error(groups: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """Each group's squared error after rounding to 4 bits; the library's own rounding takes minutes for 9 ranges."""
    rounded = (groups / scale + zero_point).round_().clamp_(-8, 7)
    return (rounded - zero_point).mul_(scale).sub_(groups).square_().sum(-1)


def main(source: Path, full: Path, quantized: Path) -> None:
    """Write both folders."""
    model, tokenizer = load(source)
    model.save_pretrained(full)
    compressor = quantize(model)
    model.save_pretrained(quantized)
    compressor.update_config(str(quantized))
    tokenizer.save_pretrained(full)
    tokenizer.save_pretrained(quantized)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
