"""What is to be judged, as a checkpoint that transformers can run: a folder as it is, a GGUF under its model's names,
and a recipe as the weights that its output would hold.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.calibration.library import quiet, require_transformers
from core.checkpoints import open_checkpoint
from core.checkpoints.base import Checkpoint
from core.checkpoints.dialects import unread_quantization
from core.checkpoints.gguf import Gguf
from core.checkpoints.huggingface import CONFIG
from core.context import SILENT, JobContext
from core.errors import EvaluationError, MissingExtra
from core.evaluation.gguf_model import DescribedModel, GgufAsModel
from core.evaluation.simulated import Simulated
from core.evaluation.text import EVALUATION

if TYPE_CHECKING:
    from core.engine.model import Plan

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@contextmanager
def as_model(checkpoint: Checkpoint, original: Checkpoint | None = None) -> Iterator[Checkpoint]:
    """The checkpoint as a model that can be run.

    original  the folder it was made from, where that is known: it says the settings of a GGUF
    raises    EvaluationError: it has no settings to run it by, or its codes are not read back; MissingExtra
    """
    unread = unread_quantization(checkpoint)
    if unread:
        raise EvaluationError(
            f"the weights are stored as codes of {unread}, which this version does not read back",
            where=checkpoint.path,
        )
    if not isinstance(checkpoint, Gguf):
        yield checkpoint
        return
    if original is not None and original.config is not None:
        yield GgufAsModel(checkpoint, original)
        return
    with tempfile.TemporaryDirectory(prefix="quantbench-settings-") as name:
        yield GgufAsModel(checkpoint, _described(checkpoint, Path(name)))


@contextmanager
def as_written(
    plan: Plan, checkpoint: Checkpoint, *, device: str = "cpu", ctx: JobContext = SILENT
) -> Iterator[Checkpoint]:
    """The weights that a plan's output would hold, as a model.

    A recipe that quantizes each tensor by itself is done on the way, tensor by tensor, and nothing is written. One that
    calibrates block by block is written to a temporary place, which then is read.
    raises  as engine.pipeline.run does
    """
    if plan.calibration is None:
        yield Simulated(plan, checkpoint, device, ctx)
        return
    from core.engine.pipeline import run

    with tempfile.TemporaryDirectory(prefix="quantbench-simulated-") as name:
        out = Path(name) / f"simulated{plan.target.suffix}"
        run(plan, checkpoint, out, device=device, ctx=ctx, measure=False)
        with open_checkpoint(out) as written, as_model(written, checkpoint) as model:
            yield model


def _described(gguf: Gguf, folder: Path) -> DescribedModel:
    """The model that a GGUF's key-values describe, its config.json and tokenizer written into a folder. Those that lie
    beside the file go first."""
    beside = gguf.path.parent
    if (beside / CONFIG).is_file():
        config = json.loads((beside / CONFIG).read_text("utf-8"))
        for side in (CONFIG, *_TOKENIZER):
            if (beside / side).is_file():
                (folder / side).write_bytes((beside / side).read_bytes())
    else:
        config = _from_pairs(gguf, folder)
    return DescribedModel(folder, config, _shapes(folder, gguf.path))


def _from_pairs(gguf: Gguf, folder: Path) -> dict[str, Any]:
    transformers = require_transformers(EVALUATION)
    hint = "give the folder it was made from: evaluate FOLDER --against FILE.gguf"
    arch = str(gguf.metadata["general.architecture"].value) if "general.architecture" in gguf.metadata else ""
    # Known to be lost by transformers on the way: positions would be wrong, and so would every figure.
    if "rope_freqs.weight" in gguf.tensors or f"{arch}.rope.scaling.type" in gguf.metadata:
        raise EvaluationError("stretches its positions, and its key-values do not say how", hint, gguf.path)
    if importlib.util.find_spec("gguf") is None:  # transformers reads with it
        raise MissingExtra("a GGUF without its folder needs the package gguf", 'pip install "quantbench[evaluation]"')
    where = {"gguf_file": gguf.path.name, "local_files_only": True}
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(str(gguf.path.parent), **where)
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(gguf.path.parent), **where)
            causal = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
            config.architectures = [causal.__name__]
            config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except Exception as error:  # whatever a foreign file makes a foreign library raise
        said = " ".join(str(error).split())[:160]
        raise EvaluationError(
            f"transformers {transformers.__version__} cannot read its settings ({said})", hint, gguf.path
        ) from error
    found: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
    return found


def _shapes(folder: Path, where: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of the model in a folder, tied ones once."""
    import torch

    transformers = require_transformers(EVALUATION)
    try:
        with quiet(), torch.device("meta"):
            config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
            model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        said = " ".join(str(error).split())[:160]
        raise EvaluationError(
            f"transformers {transformers.__version__} cannot build its model ({said})", where=where
        ) from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
