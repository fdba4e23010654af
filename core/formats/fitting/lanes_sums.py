"""The error sums on one CPU core. 16 running sums side by side vectorise; they are added up in a fixed order."""

from __future__ import annotations

import numpy as np

from core.formats.fitting.compiled import kernel
from core.formats.fitting.lanes_room import empty

W = 16


@kernel
def accumulate(x, y, out):
    """Adds to out, float64 [5]: Σx², Σ(x−y)², max|x−y|, Σxy, Σy². x, y float32 [n].

    All in float64: squares of tiny or huge weights would leave float32's range.
    """
    w2, e2, wh = empty(np.float64, W), empty(np.float64, W), empty(np.float64, W)
    h2, worst = empty(np.float64, W), empty(np.float64, W)
    for j in range(W):
        w2[j] = e2[j] = wh[j] = h2[j] = worst[j] = 0.0
    n = x.size
    whole = n // W * W
    for i in range(0, whole, W):
        for j in range(W):
            a = np.float64(x[i + j])
            b = np.float64(y[i + j])
            e = a - b
            w2[j] += a * a
            e2[j] += e * e
            wh[j] += a * b
            h2[j] += b * b
            size = abs(e)
            worst[j] = size if size > worst[j] else worst[j]
    for i in range(whole, n):
        a = np.float64(x[i])
        b = np.float64(y[i])
        e = a - b
        w2[0] += a * a
        e2[0] += e * e
        wh[0] += a * b
        h2[0] += b * b
        size = abs(e)
        worst[0] = size if size > worst[0] else worst[0]
    top = 0.0
    for j in range(W):
        out[0] += w2[j]
        out[1] += e2[j]
        out[3] += wh[j]
        out[4] += h2[j]
        top = max(top, worst[j])
    out[2] = max(out[2], top)
