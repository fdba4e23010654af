"""What opening a checkpoint of 100 GB and 50,000 tensors takes: seconds, memory, and bytes read and mapped. The file is
sparse: headers are there, weights are holes. Opening and planning must not touch them.

    python -m benchmarks.opening [--layers 5555] [--shards 20]

The floor: the headers and the index, 200 bytes for each tensor, 10 MB in all; 1,000 bytes of records per tensor, 50
MB, and twice as much for the plan. Linux only: /proc tells what was read and mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HIDDEN = 1152


def write_sparse(folder: Path, layers: int, shards: int, hidden: int = HIDDEN) -> tuple[int, int]:
    """A sharded Llama whose weights are holes. Returns (bytes of headers and index, bytes of all files)."""
    from benchmarks.window_stall import PARTS

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 9,
        "num_key_value_heads": 9,
        "vocab_size": 64,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shapes = {"model.embed_tokens.weight": (64, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        for part, dimensions in PARTS.items():
            shapes[f"model.layers.{layer}.{part}.weight"] = (hidden,) * dimensions
    names, where = list(shapes), {}
    step = -(-len(names) // shards)
    headers = total = 0
    for n, first in enumerate(range(0, len(names), step), 1):
        file = f"model-{n:05}-of-{shards:05}.safetensors"
        header, offset = {}, 0
        for name in names[first : first + step]:
            size = 2
            for dimension in shapes[name]:
                size *= dimension
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [offset, offset + size]}
            offset += size
            where[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + offset)
        headers += 8 + len(text)
        total += 8 + len(text) + offset
    index = json.dumps({"metadata": {"total_size": total - headers}, "weight_map": where})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    return headers + len(index), total


def look(folder: Path) -> dict[str, float]:
    """Opens and plans in this process. Megabytes (10⁶) of what each took, and seconds."""
    import time

    # What importing takes is no matter of the checkpoint.
    import core.engine.plan
    import core.engine.preflight
    from core.checkpoints import open_checkpoint
    from core.recipes import load
    from core.targets import get_target

    before, began = _taken(), time.perf_counter()
    checkpoint = open_checkpoint(folder)
    opened, seconds = _taken(), time.perf_counter() - began
    plan = core.engine.plan.make_plan(checkpoint, load("Q8_0"), get_target("gguf"))
    core.engine.preflight.preflight(plan, checkpoint, folder.parent / "out.gguf")
    planned = _taken()
    found = {"tensors": float(len(plan.tensors)), "open, s": seconds, "plan, s": time.perf_counter() - began - seconds}
    for key in before:
        found[f"open: {key}, MB"] = (opened[key] - before[key]) / 1e6
        found[f"open and plan: {key}, MB"] = (planned[key] - before[key]) / 1e6
    return found


def _taken() -> dict[str, int]:
    """Bytes so far of this process: read (from files, cached or not), resident, mapped from files."""
    read = next(int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line)
    resident = mapped = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            resident = 1024 * int(line.split()[1])
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].endswith((".safetensors", ".gguf")):
            begin, end = (int(x, 16) for x in fields[0].split("-"))
            mapped += end - begin
    return {"read": read, "resident": resident, "mapped": mapped}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.opening", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=5555, help="nine tensors each")
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(look(args.child)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        headers, total = write_sparse(folder, args.layers, args.shards)
        command = [sys.executable, "-m", "benchmarks.opening", "--child", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        print(f"{total / 1e9:.1f} GB in {args.shards} files, of which headers and index {headers / 1e6:.1f} MB")
        for key, value in json.loads(done.stdout).items():
            print(f"{key:<34}{value:>12,.2f}" if key != "tensors" else f"{key:<34}{value:>12,.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
