"""The hot searches: from weights to what stores them, and back. On a CPU through compiled lanes (lanes_*.py), elsewhere
through the torch reference; both give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from core.formats.base import Format

# Rows are widened and quantized in pieces of about this many weights, so that copies stay in cache; in so many times as
# much where nothing must be copied.
PIECE = 1 << 17
# On a GPU, where every step of a search is a start of a kernel.
GPU_PIECE = 1 << 22
LARGER = 8
# What a format is warmed with has at least so many columns: whole groups, where they run through rows.
WARMING = 256

_QUANTIZE = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"), "lanes_legacy"),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), "lanes_kquants"),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS"), "lanes_iq4"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "MXFP4"), "lanes_few"),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S"), "lanes_iq2"),
    **dict.fromkeys(("IQ3_XXS", "IQ3_S"), "lanes_iq3"),
    **dict.fromkeys(("IQ1_S", "IQ1_M"), "lanes_iq1"),
}
# Types whose runs of weights must be points of a lattice: their kernels want its neighbours as well.
_LATTICES = frozenset(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"))
# Weights that share a scale, in types whose searches divide by it.
_RUNS = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "IQ4_NL", "IQ4_XS"), 32),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q6_K"), 16),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), 256),
    "Q2_0": 64,
}
# Effort `best`: what refines the blocks that the kernels above have made, in place.
_REFINE = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "TQ1_0", "TQ2_0", "Q2_0"), "lanes_best_scaled"),
    **dict.fromkeys(("Q4_1", "Q5_1"), "lanes_best_shifted"),
    "MXFP4": "lanes_best_fp4",
    "IQ4_NL": "lanes_best_blocks",
    **dict.fromkeys(("Q2_K", "Q4_K", "Q5_K"), "lanes_best_affine"),
    **dict.fromkeys(("Q3_K", "Q6_K", "IQ4_XS"), "lanes_best_scales"),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), "lanes_best_lattice"),
    **dict.fromkeys(("IQ1_S", "IQ1_M"), "lanes_best_iq1"),
}
# Modules whose kernels take None for no importance, and are compiled for that by itself.
_SEPARATE = (
    *("lanes_kquants", "lanes_iq4", "lanes_iq3", "lanes_iq2", "lanes_iq1"),
    *("lanes_best_affine", "lanes_best_scales", "lanes_best_lattice", "lanes_best_iq1"),
    *("lanes_best_scaled", "lanes_best_shifted", "lanes_best_fp4", "lanes_best_blocks"),
)
# Those that find llama.cpp's answer themselves where it takes no search.
_WHOLE = frozenset(("lanes_best_scaled", "lanes_best_shifted", "lanes_best_fp4"))
# Modules whose kernels want the bits of the weights as well.
_BITS = ("lanes_legacy", "lanes_few")
_DECODE = frozenset(
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
)


def _limit(type_name: str) -> float:
    """The largest weight whose blocks are worth trying."""
    from core.formats.checks import BLOCK_LIMIT, FLOAT32_LARGEST

    # Scales that are powers of two reach as far as the weights.
    return FLOAT32_LARGEST if type_name == "MXFP4" else BLOCK_LIMIT


@cache
def _kernel(module: str, name: str) -> Any:
    return getattr(import_module(f"core.formats.fitting.{module}"), name)


def _importance(module: str, imp: Tensor | None) -> np.ndarray | None:
    """Importance as a module's kernels take it."""
    import numpy as np

    if imp is not None:
        return imp.numpy()
    return None if module in _SEPARATE else np.zeros(0, np.float32)


def _tables(type_name: str) -> tuple[np.ndarray, ...]:
    """What a type's kernel takes beside weights and importance: point, first … of core/formats/ggml/neighbours.py."""
    if type_name not in _LATTICES:
        return ()
    from core.formats.ggml.neighbours import neighbours

    lists = neighbours(type_name)
    return lists.codes, lists.point, lists.first, lists.index, lists.lanes


def on_lanes(tensor: Tensor) -> bool:
    """Whether work on this tensor goes through compiled lanes."""
    from core.formats.fitting.compiled import available

    return tensor.device.type == "cpu" and available()


def widened(w: Tensor, start: int, stop: int, room: Tensor | None) -> Tensor:
    """Rows start … stop as contiguous float32, in `room` ([≥ stop − start, columns]) when they must be copied."""
    import torch

    piece = w[start:stop]
    if piece.dtype == torch.float32 and piece.is_contiguous():
        return piece
    if room is None:
        return piece.to(torch.float32).contiguous()
    return room[: stop - start].copy_(piece)


def whole_weights(w: Tensor, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
    """All rows as contiguous float32 or bf16, with the number of the first: w itself where it is that, else piece by
    piece, each beginning at a multiple of so many rows; a piece lasts until the next one is asked for."""
    import torch

    w, (rows, columns) = w.detach(), w.shape
    if w.dtype in (torch.float32, torch.bfloat16) and w.is_contiguous():
        yield 0, w
        return
    step = -(-max(1, PIECE // max(1, columns)) // multiple) * multiple
    room = torch.empty(min(step, rows), columns)
    for start in range(0, rows, step):
        yield start, widened(w, start, min(rows, start + step), room)


def raw_weights(w: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Contiguous float32 or bf16 as kernels of rows take it: flat float32 and uint16, one of them empty."""
    import numpy as np
    import torch

    if w.dtype == torch.bfloat16:
        return np.empty(0, np.float32), w.view(torch.int16).view(-1).numpy().view(np.uint16)
    return w.view(-1).numpy(), np.empty(0, np.uint16)


def refinable(type_name: str) -> bool:
    """Whether there is a search that goes on from llama.cpp's answer."""
    return type_name in _REFINE


def quantize_blocks(type_name: str, w: Tensor, importance: Tensor | None = None, refined: bool = False) -> Tensor:
    """uint8 [rows, row bytes] for floating [rows, columns], on w's device: llama.cpp's bytes, or refined ones, no block
    of which is worse under llama.cpp's own weights.

    raises  NonFinite, OutOfRange naming the row; CalibrationError for importance that makes no sense
    """
    import torch

    from core.formats.checks import checked_importance
    from core.formats.ggml.types import ggml_type

    rows, columns = w.shape
    out = torch.empty(rows, ggml_type(type_name).row_bytes(columns), dtype=torch.uint8, device=w.device)
    imp = checked_importance(importance, columns)
    if imp is not None:
        imp = imp.to(w.device)
    lanes = on_lanes(w) and type_name in _QUANTIZE
    ready = w.dtype == torch.float32 and w.is_contiguous()
    piece = PIECE * (LARGER if ready else 1) if w.device.type == "cpu" else GPU_PIECE
    step = max(1, piece // max(1, columns))
    room = torch.empty(min(step, rows), columns) if lanes and not ready else None
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        x = widened(w.detach(), start, stop, room)
        if not lanes or _searches(type_name, imp):  # other kernels look for themselves
            x = without_dust(type_name, x)
        if lanes:
            begun = refined and _REFINE[type_name] in _WHOLE and not _searches(type_name, imp)
            if not begun:
                _on_cpu(type_name, x, imp, out[start:stop], start)
            if refined:
                _refine_on_cpu(type_name, x, imp, out[start:stop], start)
        else:
            _reference(type_name, x, imp, out[start:stop], start)
            if refined:
                _refine(type_name, x, imp, out[start:stop])
    return out


def _searches(type_name: str, imp: Tensor | None) -> bool:
    """Whether the type's kernel looks for the codes that suit best, so that its weights must be sound beforehand."""
    module = _QUANTIZE[type_name]
    return module not in _BITS or (module == "lanes_legacy" and imp is not None and type_name != "Q8_0")


def without_dust(type_name: str, x: Tensor) -> Tensor:
    """x, in a copy where runs that share a scale and hold nothing as large as 2^-112 are 0. They are stored as zeros by
    llama.cpp too, with codes that hang on reciprocals that overflow."""
    import torch

    from core.formats.checks import DUST

    run = _RUNS.get(type_name)
    if run is None:  # scales down to 2^-127, or none of the kind
        return x
    if on_lanes(x):
        import numpy as np

        found = _kernel("lanes_bits", "any_below")(x.numpy().view(np.int32), np.float32(DUST).view(np.int32))
        if not found:
            return x
    runs = x.reshape(-1, run)
    peaks = runs.abs().amax(1, keepdim=True)
    low = (peaks > 0) & (peaks < DUST)
    return torch.where(low, 0.0, runs).view(x.shape) if low.any() else x


def _on_cpu(type_name: str, x: Tensor, imp: Tensor | None, out: Tensor, start: int) -> None:
    import numpy as np

    from core.formats.checks import out_of_range

    source, target = x.numpy(), out.numpy()
    module = _QUANTIZE[type_name]
    weights = _importance(module, imp)
    bits = source.view(np.int32)
    # Without a search, a weight that must be refused shows in its block's scale; so these look for it only afterwards.
    searches = _searches(type_name, imp)
    # Two kernels where the search is worth its own: who does not need it does not wait for it to be compiled.
    kernel = _kernel(module, type_name.lower() + ("_weighted" if searches and module == "lanes_legacy" else ""))
    bad = -1 if searches else kernel(source, bits, weights, target)
    if searches or bad >= 0:
        _refuse(type_name, bits, start)
    if searches:
        more = (bits,) if module in _BITS else ()
        bad = kernel(source, *more, weights, *_tables(type_name), target)
    if bad >= 0:
        raise out_of_range(start + int(bad))


def _refuse(type_name: str, bits: np.ndarray, start: int) -> None:
    """Names the first row with NaN or Inf, or else with a weight beyond what the type can hold, if there is one."""
    import numpy as np

    from core.formats.checks import non_finite, out_of_range

    broken, beyond = _kernel("lanes_bits", "first_bad_rows")(bits, np.float32(_limit(type_name)).view(np.int32))
    if broken >= 0:
        raise non_finite(start + int(broken))
    if beyond >= 0:
        raise out_of_range(start + int(beyond))


def _reference(type_name: str, x: Tensor, imp: Tensor | None, out: Tensor, start: int) -> None:
    import torch

    from core.formats.checks import non_finite, out_of_range
    from core.formats.fitting import reference

    finite = torch.isfinite(x).all(1)
    if not finite.all():
        raise non_finite(start + int((~finite).nonzero()[0, 0].item()))
    within = (x.abs() <= _limit(type_name)).all(1)
    if not within.all():
        raise out_of_range(start + int((~within).nonzero()[0, 0].item()))
    blocks, sound = reference.quantize(type_name, x, imp)
    if not sound.all():
        raise out_of_range(start + int((~sound).nonzero()[0, 0].item()))
    out.copy_(blocks)


def _refine_on_cpu(type_name: str, x: Tensor, imp: Tensor | None, out: Tensor, start: int) -> None:
    import numpy as np

    from core.formats.checks import out_of_range

    module = _REFINE[type_name]
    tables = _tables(type_name)
    if module == "lanes_best_lattice":
        from core.formats.ggml.grids import magnitudes

        tables += (np.array(magnitudes(type_name), np.uint8),)
    whole = module in _WHOLE
    weights = _importance(module, None if whole and not _searches(type_name, imp) else imp)
    bad = _kernel(module, type_name.lower())(x.numpy(), weights, *tables, out.numpy())
    if whole and bad >= 0:
        _refuse(type_name, x.numpy().view(np.int32), start)
        raise out_of_range(start + int(bad))


def _refine(type_name: str, x: Tensor, imp: Tensor | None, out: Tensor) -> None:
    from core.formats.fitting.searches_best import refine
    from core.formats.ggml.layout import layout
    from core.formats.ggml.types import ggml_type

    kind, form = ggml_type(type_name), layout(type_name)
    weights = None if imp is None else imp.expand(x.shape).reshape(-1, kind.block)
    fields = form.unpack(out.reshape(-1, kind.type_size))
    out.copy_(form.pack(refine(type_name, x.reshape(-1, kind.block), weights, fields, x.shape[0])).view(out.shape))


def dequantize_blocks(type_name: str, blocks: Tensor, columns: int) -> Tensor:
    """float32 [rows, columns] of uint8 [rows, row bytes]."""
    from core.formats.ggml.decode import dequantize

    return dequantize(type_name, blocks, columns)


def decode_lanes(type_name: str, flat: Tensor, out: Tensor) -> bool:
    """Decodes whole blocks, uint8 [n], into float32 [blocks, block] on lanes; False when there are none for it."""
    if type_name not in _DECODE or not on_lanes(flat):
        return False
    _kernel("lanes_decode", type_name.lower())(flat.contiguous().numpy(), out.view(-1).numpy())
    return True


def warm(
    format: Format, weighted: bool = False, check: Callable[[], None] = lambda: None, effort: str | None = None
) -> None:
    """Compiles (or loads from disk) all that quantizing, decoding and measuring in this format will call, with
    importance when `weighted`, else without; with this effort, or with all. check is called before each effort, and may
    raise: a compiler at work cannot be stopped."""
    import torch

    from core.formats.fitting.sums import error_sums

    if not format.encodable:
        return
    grid = format.columns_per_grid
    w = torch.zeros(1, grid * -(-WARMING // grid))
    importance = torch.ones(w.shape[1]) if weighted or format.needs_importance else None
    for each in format.efforts if effort is None else (effort,):
        check()
        error_sums(w, format.quantize(w, importance, each).dequantize())


def is_compiled(format: Format) -> bool:
    """Whether the format's kernels are compiled already, here or on disk: the first call will be quick."""
    from core.formats.fitting.compiled import available, kept

    names = {
        "ggml": [(modules.get(format.name.upper(), ""), format.name) for modules in (_QUANTIZE, _REFINE)],
        "uniform": [("lanes_uniform", "encode")],
        "fp8": [("lanes_small", "encode")],
        "mx": [("lanes_small", "encode_nvfp4" if format.name == "nvfp4" else "encode")],
        "bitsandbytes": [("lanes_codebook", "encode_runs")] if format.bits == 4 else [],
    }.get(format.family, [])
    if format.name == "llm-int8":
        names = [("lanes_int8", "encode_int8")]
    return not available() or all(kept(module, name) for module, name in names if module)
