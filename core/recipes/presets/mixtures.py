"""llama.cpp's mixtures as a table: which type each kind of tensor gets, and under which condition. Walking a model
with its counters, and what odd shapes fall back to, is in llama_cpp.py.

Source: the behaviour of llama-quantize (tools/quantize, src/llama-quant.cpp), which names a mixture "ftype".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class At:
    """Where in a model tensors of a kind stand, and what of the model the rules ask for.

    i           int64 [tensors]: index of each among its kind (for feed-forward tensors: the layer)
    n           how many of the kind there are (for feed-forward tensors: layers)
    gqa         query heads per key-value head
    importance  whether importance data (an imatrix) is there
    """

    i: np.ndarray
    n: int
    gqa: int
    experts: int
    importance: bool
    falcon: bool


# Of every tensor, or of all at once. Arrays know no "and": the operators |, & and ^ do for both.
Condition = Callable[[At], "np.ndarray | bool"]
# First clause whose condition holds gives the type; none: the mixture's default.
Clauses = tuple[tuple[str, Condition], ...]


def more_bits(at: At) -> np.ndarray:
    """The first and last eighth of the layers, and every third between."""
    eighth = at.n // 8
    return (at.i < eighth) | (at.i >= 7 * at.n // 8) | ((at.i - eighth) % 3 == 2)


def always(at: At) -> bool:
    return True


def falcon(at: At) -> bool:
    return at.falcon


def eighth(at: At) -> np.ndarray:
    return at.i < at.n // 8


def sixteenth(at: At) -> np.ndarray:
    return at.i < at.n // 16


def middle(at: At) -> np.ndarray:
    return (at.n // 8 <= at.i) & (at.i < 7 * at.n // 8)


def grouped(at: At) -> bool:
    return at.gqa >= 4


def blind(at: At) -> bool:
    return not at.importance


def moe8(at: At) -> bool:
    return at.experts == 8


def first(count: int) -> Condition:
    return lambda at: at.i < count


def both(a: Condition, b: Condition) -> Condition:
    return lambda at: a(at) & b(at)


def either(a: Condition, b: Condition) -> Condition:
    return lambda at: a(at) | b(at)


def no(a: Condition) -> Condition:
    return lambda at: a(at) ^ True


@dataclass(frozen=True)
class Mixture:
    """One ftype.

    default    what tensors get that no clause speaks of
    head       output.weight, and token_embd.weight when there is no head
    embedding  token_embd.weight beside a head; "" for the default
    v          attn_v, attn_qkv, attn_kv_b;  o: attn_output;  o_moe8: the same with eight experts
    q, k       attn_q, attn_k;  down: ffn_down;  gate_up: ffn_gate and ffn_up
    low_bit    the branch of the 1- and 2-bit lattices: no later bumps, and layers are counted, never read from names
    stacked    only stacks of experts get the default; all else is q8_0
    needy      llama-quantize refuses it without importance data: matrices in IQ1, IQ2 or IQ3_XXS, or in Q2_K throughout
    """

    name: str
    default: str
    title: str
    help: str
    head: str = "Q6_K"
    embedding: str = ""
    v: Clauses = ()
    q: Clauses = ()
    k: Clauses = ()
    o: Clauses = ()
    o_moe8: str = ""
    down: Clauses = ()
    gate_up: Clauses = ()
    low_bit: bool = False
    stacked: bool = False
    needy: bool = False

    @property
    def types(self) -> tuple[str, ...]:
        """Every type the table itself may give, the default first. Eight experts and 70B models may add more."""
        clauses = (*self.v, *self.q, *self.k, *self.o, *self.down, *self.gate_up)
        found = (self.default, self.head, self.embedding, *(name for name, _ in clauses))
        return tuple(dict.fromkeys(filter(None, found)))


def _lattice(name: str, default: str, title: str, help: str, embedding: str, high: str, o: str = "") -> Mixture:
    """The 1- and 2-bit lattices share one branch."""
    more_experts = either(grouped, lambda at: at.experts >= 4)
    output: Clauses = (("Q5_K", moe8), *(((o, always),) if o else ()))
    return Mixture(
        name=name,
        default=default,
        title=title,
        help=help,
        head="Q5_K",
        embedding=embedding,
        v=(("Q4_K", more_experts), (high, always)),
        k=(("Q4_K", moe8),),
        o=output,
        down=((high, eighth),),
        low_bit=True,
        needy=True,
    )


_IMATRIX = "needs importance data"

MIXTURES: tuple[Mixture, ...] = (
    Mixture("Q8_0", "Q8_0", "8-bit", "Near lossless; half the size of 16 bits.", head="Q8_0"),
    Mixture("Q6_K", "Q6_K", "6-bit", "Very close to the original."),
    Mixture(
        "Q5_K_M",
        "Q5_K",
        "5-bit, medium",
        "Small loss; half of attn_v and ffn_down in 6 bits.",
        v=(("Q6_K", more_bits),),
        down=(("Q6_K", more_bits),),
    ),
    Mixture("Q5_K_S", "Q5_K", "5-bit, small", "Small loss; 5 bits throughout, the head in 6."),
    Mixture("Q5_1", "Q5_1", "5-bit with minimum", "Older blocks of 32; Q5_K_M is smaller and better."),
    Mixture(
        "Q5_0",
        "Q5_0",
        "5-bit, plain",
        "Older blocks of 32, for columns that are no multiple of 256.",
        down=(("Q5_1", both(no(blind), eighth)),),
    ),
    Mixture(
        "Q4_K_M",
        "Q4_K",
        "4-bit, medium",
        "The usual choice: 4 bits, half of attn_v and ffn_down in 6.",
        v=(("Q6_K", more_bits),),
        o_moe8="Q5_K",
        down=(
            ("Q6_K", both(falcon, sixteenth)),
            ("Q5_K", both(falcon, more_bits)),
            ("Q6_K", both(no(falcon), more_bits)),
        ),
    ),
    Mixture(
        "Q4_K_S",
        "Q4_K",
        "4-bit, small",
        "4 bits, the first layers in 5, the head in 6.",
        v=(("Q5_K", first(4)),),
        o_moe8="Q5_K",
        down=(("Q5_K", both(no(falcon), eighth)),),
    ),
    Mixture("Q4_1", "Q4_1", "4-bit with minimum", "Older blocks of 32 with a minimum each."),
    Mixture(
        "Q4_0",
        "Q4_0",
        "4-bit, plain",
        "Older blocks of 32: fastest to decode, more loss than Q4_K_S.",
        down=(("Q4_1", both(no(blind), eighth)),),
    ),
    Mixture(
        "IQ4_NL",
        "IQ4_NL",
        "4-bit codebook",
        "Non-uniform levels in blocks of 32.",
        v=(("Q5_K", grouped),),
        o_moe8="Q5_K",
        down=(("Q5_K", both(blind, eighth)),),
    ),
    Mixture(
        "IQ4_XS",
        "IQ4_XS",
        "4-bit codebook, smallest",
        "Non-uniform levels in super-blocks of 256; the smallest 4-bit file.",
        v=(("Q5_K", grouped),),
        o_moe8="Q5_K",
        down=(("Q5_K", both(blind, eighth)),),
    ),
    Mixture(
        "Q3_K_L",
        "Q3_K",
        "3-bit, large",
        "3 bits, with attn_v, attn_output and ffn_down in 5.",
        v=(("Q5_K", always),),
        o=(("Q4_K", falcon), ("Q5_K", always)),
        down=(("Q4_K", falcon), ("Q5_K", always)),
    ),
    Mixture(
        "Q3_K_M",
        "Q3_K",
        "3-bit, medium",
        "3 bits, with attn_v, attn_output and ffn_down in 4 or 5.",
        v=(("Q5_K", first(2)), ("Q4_K", always)),
        o=(("Q4_K", no(falcon)),),
        o_moe8="Q5_K",
        down=(("Q5_K", sixteenth), ("Q4_K", either(no(falcon), more_bits))),
    ),
    Mixture("Q3_K_S", "Q3_K", "3-bit, small", "3 bits throughout, the head in 6.", o_moe8="Q5_K"),
    Mixture(
        "IQ3_M",
        "IQ3_S",
        "3-bit lattice, medium",
        "Lattice codes, attn_v and attn_output in 4 bits.",
        v=(("Q4_K", always),),
        o=(("Q4_K", no(falcon)),),
        o_moe8="Q5_K",
        down=(("Q4_K", either(eighth, both(moe8, more_bits))),),
    ),
    Mixture("IQ3_S", "IQ3_S", "3-bit lattice", "Lattice codes.", v=(("Q4_K", grouped),), o_moe8="Q5_K"),
    Mixture(
        "IQ3_XS",
        "IQ3_S",
        "3-bit lattice, small",
        f"Lattice codes, attn_q, attn_k and the middle layers' ffn in fewer bits; {_IMATRIX}.",
        v=(("Q4_K", grouped),),
        q=(("IQ3_XXS", always),),
        k=(("IQ3_XXS", always),),
        o_moe8="Q5_K",
        gate_up=(("IQ3_XXS", middle),),
        needy=True,
    ),
    Mixture(
        "IQ3_XXS",
        "IQ3_XXS",
        "3-bit lattice, smallest",
        f"About 3 bits; {_IMATRIX}.",
        head="Q5_K",
        embedding="IQ3_S",
        v=(("Q4_K", grouped), ("IQ3_S", blind)),
        q=(("IQ2_S", always),),
        k=(("IQ2_S", always),),
        o=(("IQ3_S", no(falcon)),),
        o_moe8="Q5_K",
        down=(("Q4_K", both(blind, eighth)), ("Q3_K", blind)),
        needy=True,
    ),
    Mixture(
        "Q2_K",
        "Q2_K",
        "2-bit",
        "2 bits, with attn_v, attn_output and ffn_down in 3 or 4.",
        v=(("Q4_K", grouped), ("Q3_K", always)),
        o=(("Q3_K", no(falcon)),),
        o_moe8="Q5_K",
        down=(("Q3_K", always),),
    ),
    Mixture(
        "Q2_K_S",
        "Q2_K",
        "2-bit, small",
        f"2 bits nearly throughout; {_IMATRIX}.",
        v=(("Q4_K", grouped),),
        down=(("Q4_K", eighth),),
        needy=True,
    ),
    _lattice("IQ2_M", "IQ2_S", "2-bit lattice, medium", f"About 2.7 bits; {_IMATRIX}.", "IQ3_S", "IQ3_S", "IQ3_S"),
    _lattice("IQ2_S", "IQ2_XS", "2-bit lattice", f"About 2.5 bits; {_IMATRIX}.", "IQ3_S", "IQ3_S", "IQ3_S"),
    _lattice("IQ2_XS", "IQ2_XS", "2-bit lattice, small", f"About 2.4 bits; {_IMATRIX}.", "Q2_K", "Q2_K"),
    _lattice("IQ2_XXS", "IQ2_XXS", "2-bit lattice, smallest", f"About 2.2 bits; {_IMATRIX}.", "Q2_K", "Q2_K"),
    _lattice("IQ1_M", "IQ1_M", "1.75-bit", f"About 1.9 bits; {_IMATRIX}.", "Q2_K", "Q2_K", "IQ2_XXS"),
    _lattice("IQ1_S", "IQ1_S", "1.56-bit", f"About 1.8 bits; {_IMATRIX}.", "Q2_K", "Q2_K", "IQ2_XXS"),
    Mixture(
        "MXFP4_MOE",
        "MXFP4",
        "4-bit float for experts",
        "Stacked experts in MXFP4, everything else in 8 bits.",
        head="Q8_0",
        embedding="Q8_0",
        stacked=True,
    ),
    Mixture("TQ2_0", "TQ2_0", "ternary, 2.06 bits", "For models trained with ternary weights.", embedding="Q4_K"),
    Mixture("TQ1_0", "TQ1_0", "ternary, 1.69 bits", "For models trained with ternary weights.", embedding="Q4_K"),
    Mixture("Q2_0", "Q2_0", "2-bit, plain", "For models trained with three or four levels.", embedding="Q4_K"),
    Mixture("Q1_0", "Q1_0", "1-bit", "For models trained with signs."),
)
