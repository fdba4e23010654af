"""Presets that give every Linear of the transformer one format and keep head, embedding and norms: what publishers of
safetensors checkpoints do, under the names of compressed-tensors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from core.parameters import DYNAMIC, PLAIN, STATIC
from core.recipes.presets.base import KEPT, Choice, Preset
from core.recipes.protect import protections

if TYPE_CHECKING:
    from core.kinds import Shared
    from core.targets.base import Outline

_KEPT_ROLES = ("head", "embedding")


def choose(format: str, inputs: str, outline: Outline, importance: bool) -> Shared[Choice]:
    """The format for every Linear weight but the head's, and what clients shall do with their inputs."""
    given = Choice(format, inputs=inputs)
    choices = []
    for index in outline.kinds.first:
        tensor = outline.tensors[index]
        if protections(outline)[index]:
            choices.append(KEPT)
        elif tensor.role.kind in _KEPT_ROLES:
            choices.append(Choice("keep", tensor.role.kind))
        elif not tensor.linear:
            choices.append(Choice("keep", "not a Linear weight"))
        else:
            choices.append(given)
    return outline.kinds.share(choices)


def _preset(name: str, format: str, title: str, help: str, inputs: str = PLAIN) -> Preset:
    chosen = partial(choose, format, inputs)
    return Preset(name, title, help, "compressed-tensors", "compressed-tensors", (format,), chosen)


LINEARS: tuple[Preset, ...] = (
    _preset(
        "W4A16",
        "int4-g128",
        "4-bit integers, groups of 128",
        "Symmetric int4 for every Linear, head and embedding kept; what vLLM serves fastest.",
    ),
    _preset(
        "W4A16_ASYM",
        "int4-g128-asym",
        "4-bit integers with zero points, groups of 128",
        "Asymmetric int4 for every Linear, head and embedding kept.",
    ),
    _preset(
        "W8A16",
        "int8",
        "8-bit integers, one scale per row",
        "Symmetric int8 for every Linear, head and embedding kept; near lossless.",
    ),
    _preset(
        "W8A8",
        "int8",
        "8-bit integers, inputs too",
        "Symmetric int8 for every Linear, inputs rounded to int8 as they come, one scale per token.",
        DYNAMIC,
    ),
    _preset(
        "FP8",
        "fp8-e4m3-tensor",
        "8-bit floats, inputs with a fixed scale",
        "E4M3 with one scale per tensor; the scale of inputs comes from a calibration text.",
        STATIC,
    ),
    _preset(
        "FP8_DYNAMIC",
        "fp8-e4m3",
        "8-bit floats, inputs as they come",
        "E4M3 with one scale per row, inputs rounded with one scale per token. Needs no calibration.",
        DYNAMIC,
    ),
    _preset(
        "FP8_BLOCK",
        "fp8-e4m3-b128",
        "8-bit floats in blocks of 128 × 128",
        "E4M3 with one scale per block, inputs rounded with a scale per 128. Needs no calibration.",
        DYNAMIC,
    ),
    _preset(
        "NVFP4",
        "nvfp4",
        "4-bit floats, inputs too",
        "E2M1 with a scale per 16; the range of inputs comes from a calibration text. For Blackwell GPUs.",
        STATIC,
    ),
    _preset(
        "NVFP4A16",
        "nvfp4",
        "4-bit floats, inputs as they are",
        "E2M1 with a scale per 16, weights only. Needs no calibration.",
    ),
    _preset(
        "MXFP4A16",
        "mxfp4",
        "4-bit floats, a power of two per 32",
        "MXFP4 for every Linear, inputs as they are. Needs no calibration.",
    ),
    _preset(
        "MXFP8",
        "mxfp8",
        "8-bit floats, a power of two per 32",
        "MXFP8 for every Linear, inputs likewise as they come. Needs no calibration.",
        DYNAMIC,
    ),
)
