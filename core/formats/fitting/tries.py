"""Which other scales effort `best` tries for blocks with a scale of their own. Chosen one after the other as those that
lower the error of Gaussian weights most; so the first ones matter most."""

from __future__ import annotations

# Factors of llama.cpp's scale. Levels that are not symmetric may gain by the other sign.
_AROUND = (0.95, 1.11, 0.92, 1.03, 0.97, 1.15, 0.9, 0.99, 1.06, 1.01, 0.94, 1.08, 0.87)
FACTORS: dict[str, tuple[float, ...]] = {
    "Q4_0": (0.94, 1.11, 0.97, 1.03),
    "Q5_0": (1.06, 0.97, 1.13, 1.02, 1.08, 0.98),
    "Q8_0": (1.0075, 1.025, 1.015, 1.04, 1.0325, 1.05, 1.0575, 1.0175, 1.0675, 1.075, 1.085, 1.045, 1.02, 1.095),
    "TQ1_0": (0.35, 0.2, 0.45, 0.3),  # TQ2_0 too
    "Q2_0": (-0.4, 0.35, -0.3, 0.45),
    "IQ4_NL": (*_AROUND, *(-f for f in _AROUND), -1.0),
    "weighted": (*_AROUND[:8], *(-f for f in _AROUND[:8])),
}
# The same with a minimum: a factor of the scale, and by how many of its steps the minimum moves.
LINES: dict[str, tuple[tuple[float, float], ...]] = {
    "Q4_1": ((0.98, -0.125),),  # one: ggml is fast here, and two would be slower
    "Q5_1": ((1.02, 0.25), (1.0, 0.25), (1.0, -0.25), (1.06, 0.25)),
    "weighted": tuple((f, m) for f in (0.92, 0.96, 0.98, 1.0, 1.02, 1.04, 1.06) for m in (-0.25, 0.0, 0.25, 0.5)),
}
# How often the line that suits the best codes is given new codes and fitted again.
AGAIN = {"Q4_1": 0, "Q5_1": 1, "weighted": 1}
# The same for IQ4_NL's scale.
REFITS = 2
# Lattices: how far from the present one every group's scale is sought, one round after the other.
REACHES = (2, 1, 1)
# IQ1, whose lists of neighbours are long: in each round the present scale with both sides, and where a round moves,
# the scales beside it with the better one.
SIDE_MOVES = (True, False)
