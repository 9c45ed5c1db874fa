"""Make both model folders from the packaged GGUF file; runs inside the engine's environment, as a program.

    python _convert.py SOURCE.gguf FULL_FOLDER QUANTIZED_FOLDER [--unpack]

The full folder holds the GGUF's weights as bfloat16 safetensors. The quantized one holds the same model as W4A16:
4-bit integers, asymmetric, in groups of 32 input channels, in compressed-tensors' ``pack-quantized`` format; the
embedding, which is tied to the output head, stays bfloat16. Values are rounded to nearest, within the range that costs
each group the least squared error: a model this small feels the difference (against the plain minimum and maximum, the
error falls by a quarter, and so does the divergence from the full model's next-token probabilities).

With ``--unpack`` the quantized folder holds these values as bfloat16, as the 4-bit kernel unpacks them, and names no
quantization: a stand-in for a processor that vLLM has no such kernel for.

Nothing here is random, so the same pins give the same bytes.
"""

from __future__ import annotations

import copy
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
from compressed_tensors.quantization.lifecycle.forward import (  # type: ignore[import-not-found, unused-ignore]
    fake_quantize,
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


def quantize(model: PreTrainedModel) -> None:
    """Find the scales and zero points of the model's linear layers."""
    scheme = QuantizationScheme(targets=["Linear"], weights=_WEIGHTS)
    apply_quantization_config(model, QuantizationConfig(config_groups={"w4a16": scheme}, ignore=["lm_head"]))
    for module in filter(is_module_quantized, model.modules()):
        _set_scales(module)


def pack(model: PreTrainedModel) -> ModelCompressor:
    """Store quantized layers as 4-bit integers; return what writes the matching ``quantization_config``."""
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    return compressor


def unpack(model: PreTrainedModel, quantized: PreTrainedModel) -> None:
    """Give a plain model the values that the layers of a quantized one stand for."""
    layers = dict(quantized.named_modules())
    for name, module in model.named_modules():
        if is_module_quantized(layers[name]):
            module.weight.data = fake_quantize(
                layers[name].weight.data, layers[name].weight_scale, layers[name].weight_zero_point, _WEIGHTS
            )


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


def main(source: Path, full: Path, quantized: Path, *, unpacked: bool) -> None:
    """Write both folders."""
    model, tokenizer = load(source)
    model.save_pretrained(full)
    plain = copy.deepcopy(model) if unpacked else None
    quantize(model)
    if plain is not None:
        unpack(plain, model)
        plain.save_pretrained(quantized)
    else:
        compressor = pack(model)
        model.save_pretrained(quantized)
        compressor.update_config(str(quantized))
    tokenizer.save_pretrained(full)
    tokenizer.save_pretrained(quantized)


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:4]]
    main(*folders, unpacked=sys.argv[4:] == ["--unpack"])
