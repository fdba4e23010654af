"""The process in which llama.cpp generates: one JSON object in on stdin, one line "ANSWER {…}" out on stdout. Started
by generation.py; leaves by os._exit, because the library's threads do not end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    order = json.loads(sys.stdin.read())
    try:
        answer = run(order)
    except Exception as error:  # whatever the library raises becomes the other side's one line
        answer = {"error": " ".join(str(error).split())[:200] or type(error).__name__}
    sys.stdout.write("ANSWER " + json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)


def run(order: dict[str, Any]) -> dict[str, Any]:
    """The fields of generation.Generation but device and runtime."""
    import xllamacpp

    from core.engine.memory import process_peak

    began = time.perf_counter()
    params = xllamacpp.CommonParams()
    params.model.path = order["path"]
    # Bytes are never fewer than tokens.
    params.n_ctx = len(order["prompt"].encode()) + order["tokens"] + 16
    params.n_parallel = 1
    params.n_gpu_layers = order["gpu_layers"]
    params.cpuparams.n_threads = order["threads"]
    params.warmup = False
    params.fit_params = False
    server = xllamacpp.Server(params)
    loaded = time.perf_counter()
    wanted = {
        "prompt": order["prompt"],
        "max_tokens": order["tokens"],
        "temperature": order["temperature"],
        "seed": order["seed"],
    }
    answer = server.handle_completions(wanted)
    seconds = time.perf_counter() - loaded
    if "choices" not in answer:
        said = answer.get("error", answer)
        return {"error": str(said.get("message", said))[:200]}
    usage, timings = answer["usage"], answer["timings"]
    count = usage["completion_tokens"]
    return {
        "text": answer["choices"][0]["text"],
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": count,
        "seconds": seconds,
        "prompt_seconds": timings["prompt_ms"] / 1000,
        "tokens_per_second": 1000 * count / timings["predicted_ms"] if timings["predicted_ms"] else 0.0,
        "load_seconds": loaded - began,
        "peak_rss_bytes": process_peak(),
    }


if __name__ == "__main__":
    main()
