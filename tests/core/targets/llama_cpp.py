"""llama.cpp on a file, through the C API that xllamacpp's library exports: the tokens of texts, and the logits of token
ids. In a process of its own, left by os._exit; no tests here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SCRIPT = r"""
import ctypes, json, os, sys
from pathlib import Path

import xllamacpp

folder = Path(xllamacpp.__file__).parent
library = ctypes.CDLL(str(next(f for f in sorted(folder.glob("xllamacpp*")) if f.suffix in (".so", ".pyd", ".dylib"))))
P, I, B = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool


class Params(ctypes.Structure):  # larger than any of llama.cpp's parameter structs, which are handed on unseen
    _fields_ = [("raw", ctypes.c_uint8 * 1024)]


class Batch(ctypes.Structure):
    _fields_ = [("n", I), ("token", P), ("embd", P), ("pos", P), ("n_seq", P), ("seq", P), ("logits", P)]


def function(name, result, *arguments):
    found = getattr(library, name)
    found.restype, found.argtypes = result, arguments
    return found


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, P)
quiet = LOG(lambda level, text, _: sys.stderr.write(text.decode(errors="replace")) if level == 4 else None)
function("llama_log_set", None, LOG, P)(quiet, None)
function("llama_backend_init", None)()


def context_params():
    # The defaults with a key-value cache of 32 bits and without flash attention, which computes in 16. The cache's two
    # types stand where the defaults have 16 bits twice, behind a callback and its data, both null; flash attention is
    # the last of four settings that are -1.
    params = function("llama_context_default_params", Params)()
    numbers = (I * 256).from_buffer(params)
    at = [i for i in range(0, 60, 2) if list(numbers[i : i + 6]) == [0, 0, 0, 0, 1, 1]]
    assert len(at) == 1, list(numbers)[:60]
    numbers[at[0] + 4] = numbers[at[0] + 5] = 0
    at = [i for i in range(60) if list(numbers[i : i + 4]) == [-1] * 4]
    assert len(at) == 1, list(numbers)[:60]
    numbers[at[0] + 3] = 0
    return params


load = function("llama_model_load_from_file", P, ctypes.c_char_p, Params)
context = function("llama_init_from_model", P, P, Params)
tokenize = function("llama_tokenize", I, P, ctypes.c_char_p, I, P, I, B, B)
decode = function("llama_decode", I, P, Batch)
one = function("llama_batch_get_one", Batch, P, I)
logits_of = function("llama_get_logits", ctypes.POINTER(ctypes.c_float), P)
free_context, free_model = function("llama_free", None, P), function("llama_model_free", None, P)


def run(job):
    model = load(job["path"].encode(), function("llama_model_default_params", Params)())
    if not model:
        return {"error": "cannot be loaded"}
    vocab = function("llama_model_get_vocab", P, P)(model)
    size = function("llama_vocab_n_tokens", I, P)(vocab)
    answer = {"size": size, "tokens": [], "logits": []}
    for special in ("bos", "eos"):
        answer[special] = function(f"llama_vocab_{special}", I, P)(vocab)
    for text in job["texts"]:
        data = text.encode()
        room = (I * (len(data) + 8))()
        count = tokenize(vocab, data, len(data), room, len(room), True, True)
        answer["tokens"].append(list(room[:count]))
    if job["pooled"]:
        state = context(model, context_params())
        function("llama_set_embeddings", None, P, B)(state, True)
        room = (I * len(job["ids"]))(*job["ids"])
        if function("llama_encode", I, P, Batch)(state, one(room, len(room))):
            return {"error": "cannot be evaluated"}
        found = function("llama_get_embeddings_seq", ctypes.POINTER(ctypes.c_float), P, I)(state, 0)
        answer["logits"].append(list(found[: function("llama_model_n_embd", I, P)(model)]))
        free_context(state)
    elif job["ids"]:
        state = context(model, context_params())
        for token in job["ids"]:
            if decode(state, one((I * 1)(token), 1)):
                return {"error": "cannot be evaluated"}
            answer["logits"].append(list(logits_of(state)[:size]))
        free_context(state)
    free_model(model)
    return answer


answers = [run(job) for job in json.loads(sys.stdin.read())]
sys.stdout.write("ANSWER " + json.dumps(answers) + "\n")
sys.stdout.flush()
os._exit(0)
"""


@dataclass(frozen=True)
class Answer:
    """tokens per text; logits float32 [ids, vocabulary], or the pooled embedding [1, hidden]; error "" when the file
    could be loaded."""

    size: int
    bos: int
    eos: int
    tokens: list[list[int]]
    logits: np.ndarray
    error: str = ""


def ask(*jobs: tuple[Path, list[str], list[int]], pooled: bool = False) -> list[Answer]:
    """(file, texts to tokenize, ids to evaluate) each, all in one process. pooled: the embedding of all ids together
    instead of logits."""
    sent = json.dumps([{"path": str(path), "texts": texts, "ids": ids, "pooled": pooled} for path, texts, ids in jobs])
    done = subprocess.run([sys.executable, "-c", _SCRIPT], input=sent, capture_output=True, text=True, timeout=200)
    line = next((x for x in done.stdout.splitlines() if x.startswith("ANSWER ")), None)
    assert line, done.stderr[-3000:]
    answers = []
    for found in json.loads(line.removeprefix("ANSWER ")):
        if "error" in found:
            answers.append(Answer(0, -1, -1, [], np.zeros((0, 0)), f"{found['error']}: {done.stderr[-500:]}"))
            continue
        logits = np.array(found["logits"], np.float32)
        answers.append(Answer(found["size"], found["bos"], found["eos"], found["tokens"], logits))
    return answers
