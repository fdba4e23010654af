"""Tiny models, tokenizers, and a driver that turns layout and store into files without the engine. No tests here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from core.checkpoints import open_checkpoint
from core.checkpoints.base import Checkpoint
from core.formats import get_format
from core.recipes.checking import parse_strategy
from core.targets import get_target
from core.targets.assignments import Assignments
from core.targets.base import Assignment, Layout, Outline, OutputTensor, Target

TEXTS = [
    "The quick brown fox, it's 12345 times quicker than we'll ever be!\n\n  Indented:\treturn x_1 += 42\r\n",
    "Größe, naïve café — “quoted” … 東京タワー 2024年、안녕하세요 🙂🙃 don't DON'T I'M you've",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)   \n",
    "a/b//c  http://example.org/?q=1&r=[2]  {json: true}   \n \n\n end",
]
WORDS = " ".join(TEXTS)

Choose = Callable[[OutputTensor], str | None]


def byte_level(pre: Any, size: int = 420, special: tuple[str, ...] = ("<s>", "</s>"), **model: Any) -> Tokenizer:
    """A byte-level BPE tokenizer trained on TEXTS."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def gpt2_like() -> Tokenizer:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def with_byte_fallback(size: int = 400) -> Tokenizer:
    """A tokenizer as Llama 2 has it: pieces with ▁ for spaces, bytes where there is no piece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, limit_alphabet=60, max_token_length=16, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    # The byte tokens are pieces, not special tokens: only the first three are.
    import json

    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(content))


def save_model(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Path:
    """A random Llama of two layers in `folder`. Norms and biases are random too, so that mixing them up shows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": 448,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(settings | options)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (0 if name.endswith("bias") else 1))
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
    model.to(dtype).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, tokenizer: Tokenizer, **settings: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    given = {"bos_token": "<s>", "eos_token": "</s>"} | settings
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **given).save_pretrained(folder)


def assign(target: Target, checkpoint: Checkpoint, outline: Outline, choose: Choose) -> Assignments:
    """choose gives a format's name, "(inputs=…)" behind it or not, or None to keep; what the target refuses is an
    error."""
    made = []
    for tensor in outline.tensors:
        asked = choose(tensor)
        strategy = parse_strategy(asked) if asked else None
        name = strategy.format if strategy else None
        inputs = dict(strategy.params).get("inputs", "plain") if strategy else "plain"
        if name is None:
            fmt = target.keeps(tensor)
        else:
            fmt = target.adapt(get_format(name), tensor)
            assert target.refuses(fmt, tensor) is None, (tensor.name, target.refuses(fmt, tensor))
            assert fmt.misfit(tensor.shape) is None, (tensor.name, fmt.misfit(tensor.shape))
            assert target.refuses_inputs(fmt, inputs) is None, target.refuses_inputs(fmt, inputs)
        made.append(Assignment(tensor, fmt, _copied(target, checkpoint, tensor, fmt, name), inputs=inputs))
    return Assignments(made)


def _copied(target: Target, checkpoint: Checkpoint, tensor: OutputTensor, fmt: Any, name: str | None) -> bool:
    source = tensor.source.verbatim()
    if source is None or source not in checkpoint.tensors or (name is not None and name.upper() != tensor.dtype):
        return False
    stored = target.stored(Assignment(tensor, fmt, copy=True))
    info = checkpoint.tensors[source]
    alone = len(stored) == 1 + len(tensor.source.beside())
    return alone and (stored[0].dtype, stored[0].nbytes) == (info.dtype, info.nbytes)


def assemble(
    source: Path | Checkpoint,
    target_name: str,
    out: Path,
    choose: Choose = lambda tensor: None,
    *,
    label: str = "",
    slice_rows: int = 0,
) -> Layout:
    """Writes the output from layout and store alone. Every byte of every stored tensor must come exactly once, and
    nothing may be written elsewhere.

    slice_rows  rows per call of store, a multiple of the target's row_multiple; 0 for whole tensors
    """
    checkpoint = open_checkpoint(source) if isinstance(source, Path) else source
    target = get_target(target_name)
    outline = target.outline(checkpoint)
    assignments = assign(target, checkpoint, outline, choose)
    layout = target.layout(checkpoint, outline, assignments, label)
    files = [np.zeros(f.nbytes, np.uint8) for f in layout.files]
    written = [np.zeros(f.nbytes, np.uint8) for f in layout.files]
    for data, count, file in zip(files, written, layout.files, strict=True):
        data[: len(file.head)] = np.frombuffer(file.head, np.uint8)
        count[: len(file.head)] += 1
    for assignment in assignments:
        places = {p.stored.name: p for p in layout.places[assignment.tensor.name]}
        for name, offset, piece in _pieces(target, checkpoint, assignment, slice_rows):
            place, raw = places[name], np.frombuffer(piece, np.uint8)
            assert 0 <= offset <= offset + raw.size <= place.stored.nbytes, name
            at = place.offset + offset
            files[place.file][at : at + raw.size] = raw
            written[place.file][at : at + raw.size] += 1
        for place in places.values():
            span = written[place.file][place.offset : place.offset + place.stored.nbytes]
            assert (span == 1).all(), f"{place.stored.name}: bytes missing or written twice"
    covered = sum(int(c.sum()) for c in written)
    stored = sum(p.stored.nbytes for places in layout.places.values() for p in places)
    assert covered == stored + sum(len(f.head) for f in layout.files)
    if target.folder:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in layout.sides.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
    for data, file in zip(files, layout.files, strict=True):
        (out / file.name if target.folder else out).write_bytes(data.tobytes())
    assert size_of(out) == layout.nbytes
    return layout


def _pieces(target: Target, checkpoint: Checkpoint, assignment: Assignment, slice_rows: int) -> Any:
    tensor = assignment.tensor
    if not tensor.numel:
        return
    if assignment.copy:
        yield tensor.name, 0, bytes(checkpoint.raw(tensor.source.verbatim() or ""))
        yield from ((name, 0, bytes(checkpoint.raw(name))) for name in tensor.source.beside())
        return
    multiple = assignment.format.row_multiple(tensor.shape)
    step = slice_rows if slice_rows and multiple and slice_rows % multiple == 0 else tensor.rows
    for start in range(0, tensor.rows, step):
        stop = min(tensor.rows, start + step)
        evenly = torch.ones(tensor.columns) if assignment.format.needs_importance else None
        quantized = assignment.format.quantize(tensor.source.read(checkpoint, start, stop), evenly)
        yield from target.store(assignment, quantized, start, stop)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def matrices(name: str, *, head: bool = True) -> Choose:
    """The format for every Linear weight, with or without the head."""

    def choose(tensor: OutputTensor) -> str | None:
        kept = not tensor.linear or tensor.role.kind in ("embedding", *(() if head else ("head",)))
        return None if kept or len(tensor.shape) < 2 else name

    return choose
