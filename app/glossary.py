"""Terms of the field, each explained in one sentence: the tooltips of table headers, forms and figures come from here.
No Qt. To add one: a line in TERMS.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Term:
    """id: how code names it; title: how people write it; text: one sentence."""

    id: str
    title: str
    text: str


TERMS = (
    Term("tensor", "Tensor", "One named block of numbers of the model, such as the weights of a layer's projection."),
    Term(
        "role",
        "Role",
        "What part of the model a tensor is (query, value, down projection, norm), read from its name.",
    ),
    Term(
        "shape",
        "Shape",
        "Rows × columns; a row holds the weights that make one output, leading dimensions come first.",
    ),
    Term("dtype", "Type", "How numbers are stored in the file: BF16 takes 16 bits each, Q4_K about 4.5."),
    Term("size", "Size", "Bytes in the file, scales and padding included; 1 MiB is 1,048,576 bytes."),
    Term("bpw", "Bits per weight", "All stored bits, scales and padding included, divided by the number of weights."),
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
        "How heavy the tails of a distribution are: 0 for a bell curve, large where single values stick out.",
    ),
    Term(
        "sqnr",
        "SQNR",
        "Signal to quantization noise of the weights in decibels, 10·log₁₀(Σw²/Σ(w−ŵ)²): 6 dB more is half the error.",
    ),
    Term(
        "relative_mse",
        "Relative MSE",
        "Squared error of the weights divided by their squared size: 0.01 is one percent.",
    ),
    Term("max_abs", "Largest error", "The largest distance between any weight and what it became."),
    Term(
        "cosine",
        "Cosine",
        "Cosine of the angle between the weights before and after, seen as two long vectors: 1 is the same direction.",
    ),
    Term(
        "fallback",
        "Fallback",
        "Something that was done otherwise than asked, because shape, container or data did not allow it.",
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
    ),
    Term(
        "preflight",
        "Preflight",
        "What is checked before the first byte is written: exact size, disk, memory, misfits.",
    ),
    Term("note", "Note", "Why a tensor could not be treated like the others."),
)

_BY_ID = {t.id: t for t in TERMS}


def term(id: str) -> Term:
    """KeyError for a term that is not in the table."""
    return _BY_ID[id]


def explain(id: str, extra: str = "") -> str:
    """The sentence of a term as a tooltip, and what a place adds to it on a second line."""
    text = term(id).text
    return f"{text}\n{extra}" if extra else text
