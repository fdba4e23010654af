"""Terms of the field, each explained in one sentence: the tooltips of table headers, forms and figures come from here.
No Qt. To add one: a line in TERMS.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Term:
    """id: how code names it; title: how people write it; text: one sentence; words: what else the window calls it,
    without a unit."""

    id: str
    title: str
    text: str
    words: tuple[str, ...] = ()


TERMS = (
    Term(
        "tensor",
        "Tensor",
        "One named block of numbers of the model, such as the weights of a layer's projection.",
        words=(
            "made from",
            "tensors",
        ),
    ),
    Term(
        "role",
        "Role",
        "What part of the model a tensor is (query, value, down projection, norm), read from its name.",
    ),
    Term(
        "shape",
        "Shape",
        "Rows × columns; a row holds the weights that make one output, leading dimensions come first.",
        words=("weights",),
    ),
    Term(
        "dtype",
        "Type",
        "How numbers are stored in the file: BF16 takes 16 bits each, Q4_K about 4.5.",
        words=(
            "dtype",
            "stored as",
        ),
    ),
    Term(
        "size",
        "Size",
        "Bytes in the file, scales and padding included; 1 MiB is 1,048,576 bytes.",
        words=("file size",),
    ),
    Term(
        "bpw",
        "Bits per weight",
        "All stored bits, scales and padding included, divided by the number of weights.",
        words=("bpw",),
    ),
    Term("format", "Format", "Which levels a weight may take, and how codes and scales are stored."),
    Term(
        "method",
        "Method",
        "How the code of each weight is chosen: nearest level, or one that makes up for others' errors.",
    ),
    Term("strategy", "Strategy", "A format with the method that fills it and its parameters, such as q4_k+gptq."),
    Term("recipe", "Recipe", "Ordered rules that give tensors their strategies; the first rule that matches wins."),
    Term("rule", "Rule", "A pattern of names, roles or shapes, and the strategy that matching tensors get."),
    Term("preset", "Preset", "A ready recipe, such as llama.cpp's Q4_K_M with its exact choice for each tensor."),
    Term("target", "Target", "The container and dialect that is written, such as GGUF or compressed-tensors."),
    Term("grid", "Grid", "The fitted levels of a run of weights: their scale, minimum or codebook."),
    Term("scale", "Scale", "The real step between two neighbouring codes of a group."),
    Term(
        "group",
        "Group",
        "A run of weights in a row that share one scale; smaller groups cost bits and follow the weights closer.",
    ),
    Term("zero_point", "Zero point", "The code that stands for 0.0 where levels are not symmetric around it."),
    Term("codebook", "Codebook", "A fixed list of levels at unequal distances, denser where weights are many."),
    Term(
        "outlier",
        "Outlier",
        "A weight or input far larger than its neighbours; it stretches the grid that all of them share.",
    ),
    Term(
        "kurtosis",
        "Kurtosis",
        "How heavy the tails of a distribution are: 3 for a bell curve, more where single values stick out.",
    ),
    Term(
        "sqnr",
        "SQNR",
        "Signal to quantization noise of the weights in decibels, 10·log₁₀(Σw²/Σ(w−ŵ)²): 6 dB more is half the error.",
        words=("mean", "worst"),
    ),
    Term(
        "relative_mse",
        "Relative MSE",
        "Squared error of the weights divided by their squared size: 0.01 is one percent.",
    ),
    Term(
        "max_abs",
        "Largest error",
        "The largest distance between any weight and what it became.",
        words=(
            "max |a−b|",
            "largest |w − ŵ|",
        ),
    ),
    Term(
        "cosine",
        "Cosine",
        "Cosine of the angle between the weights before and after, seen as two long vectors: 1 is the same direction.",
    ),
    Term(
        "fallback",
        "Fallback",
        "Something that was done otherwise than asked, because shape, container or data did not allow it.",
        words=(
            "not as asked",
            "why",
        ),
    ),
    Term(
        "calibration",
        "Calibration",
        "Running sample text through the model to learn which inputs are large, before codes are chosen.",
    ),
    Term(
        "imatrix",
        "Importance matrix",
        "The mean square of every input channel over a text: it says which columns of a weight matter.",
    ),
    Term(
        "hessian",
        "Hessian",
        "How inputs of a layer go together over a text: GPTQ uses it to let later weights make up for earlier errors.",
    ),
    Term("perplexity", "Perplexity", "How surprised the model is by a text, on average per token; lower is better."),
    Term(
        "kld",
        "KL divergence",
        "How far the quantized model's next-token odds are from the original's; 0 is no difference.",
        words=("kld",),
    ),
    Term(
        "preflight",
        "Preflight",
        "What is checked before the first byte is written: exact size, disk, memory, misfits.",
    ),
    Term("note", "Note", "Why a tensor could not be treated like the others."),
    Term(
        "weighted", "Weighted", "Relative MSE with every column counted by its importance, where calibration knows it."
    ),
    Term("peak", "Largest |w|", "The largest weight of a row or column, without its sign."),
    Term("rms", "× RMS", "The same in units of the root mean square of all weights of the tensor."),
    Term("energy", "Energy", "Share of the sum of squares of all weights of the tensor."),
    Term("input_peak", "Largest |x|", "The largest activation of this input channel that calibration saw."),
    Term("place", "Row or column", "Its number, counted from 0.", words=("row", "column")),
    Term(
        "output_error",
        "Output error",
        "What a layer's outputs lose, relative to their size, over the calibration's text.",
    ),
    Term("token", "Token", "A piece of text as the model's tokenizer cuts it, about four letters of English."),
    Term("tokens_in", "Tokens in", "How many tokens the model read."),
    Term("tokens_out", "Tokens out", "How many tokens the model generated.", words=("out",)),
    Term("speed", "Tokens per second", "Read in an evaluation, generated in a generation.", words=("tokens/s",)),
    Term("top1", "Same top token", "How often the likeliest next token is the original's.", words=("top-1",)),
    Term("device", "Device", "What computes: the processor's cores, or a GPU."),
    Term("memory", "Memory", "The most that the process held at one time; 1 GiB is 1,073,741,824 bytes."),
    Term("duration", "Time", "How long the work took, or has taken so far.", words=("took",)),
    Term("model", "Model", "The checkpoint that was read."),
    Term("what", "What", "The recipe, or the file that was judged."),
    Term("matched", "Matched", "Tensors that the rule's pattern takes."),
    Term("won", "Won", "Tensors that the rule decides over, because no rule above takes them."),
    Term("order", "Order", "The first rule from above that matches a tensor wins.", words=("#",)),
    Term("job", "Job", "One piece of work: a run, a calibration, an evaluation."),
    Term("progress", "Progress", "How much of the work is done."),
    Term("read", "Read", "Bytes of the checkpoint that have been read so far."),
    Term("rate", "Rate", "Bytes read per second, over the last moments."),
    Term("left", "Left", "How long the rest will take at this rate."),
)

_BY_ID = {t.id: t for t in TERMS}
_BY_WORD = {word.lower(): t for t in TERMS for word in (*t.words, t.title)}


def term(id: str) -> Term:
    """KeyError for a term that is not in the table."""
    return _BY_ID[id]


def explain(id: str, extra: str = "") -> str:
    """The sentence of a term as a tooltip, and what a place adds to it on a second line."""
    text = term(id).text
    return f"{text}\n{extra}" if extra else text


def about(word: str, extra: str = "") -> str:
    """The sentence of what the window calls `word` ("SQNR, dB": units and case do not matter) as a tooltip, "" for a
    word that is not in the table."""
    known = _BY_WORD.get(word.partition(",")[0].strip().lower())
    return explain(known.id, extra) if known is not None else extra
