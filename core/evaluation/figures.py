"""What is counted of predictions: perplexity of one model, and how far another one's predictions are from its own.

Error bars are standard errors that take the scored tokens for independent, as llama.cpp's do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

# Positions whose predictions are looked at together.
_POSITIONS = 128


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log likelihood of the scored tokens, in nats.

    error  standard error of it
    """

    tokens: int
    value: float
    error: float


@dataclass(frozen=True)
class Distance:
    """Another model's predictions at the scored tokens, against the original's.

    kld_*            Kullback-Leibler divergence KL(original ‖ other) in nats, per token
    top1_agreement   share of tokens where both put the same token first
    ratio            perplexity over the original's; difference: minus the original's. Their errors know that both
                     models read the same text
    """

    kld_mean: float
    kld_error: float
    kld_median: float
    kld_p90: float
    kld_p99: float
    kld_max: float
    top1_agreement: float
    top1_error: float
    ratio: float
    ratio_error: float
    difference: float
    difference_error: float


@dataclass
class Counts:
    """Per scored token, in order: negative log likelihoods of the original and the other model, their divergence, and
    whether they agree on the likeliest token."""

    nll: list[np.ndarray] = field(default_factory=list)
    other: list[np.ndarray] = field(default_factory=list)
    kld: list[np.ndarray] = field(default_factory=list)
    same: list[np.ndarray] = field(default_factory=list)

    def add(self, targets: torch.Tensor, logits: torch.Tensor, other: torch.Tensor | None = None) -> None:
        """One window's scored tokens.

        targets int64 [tokens]
        logits  float32 [tokens, vocabulary], what was predicted in their places, and those of the other model
        raises  ValueError("NaN or Inf", index of the model) for logits that are none
        """
        import torch

        targets = targets.to(logits.device)
        for start in range(0, len(targets), _POSITIONS):
            here = slice(start, start + _POSITIONS)
            wanted = targets[here, None]
            p = torch.log_softmax(logits[here], -1)
            if not bool(p.isfinite().all()):
                raise ValueError("NaN or Inf", 0)
            self.nll.append(_double(-p.gather(1, wanted)[:, 0]))
            if other is None:
                continue
            # A padded head may know more words than the text's model; they count for neither.
            q = torch.log_softmax(other[here].to(p.device)[:, : p.shape[1]], -1)
            if not bool(q.isfinite().all()):
                raise ValueError("NaN or Inf", 1)
            self.other.append(_double(-q.gather(1, wanted)[:, 0]))
            self.kld.append(_double((p.exp() * (p - q)).sum(-1, dtype=torch.float64)))
            self.same.append((p.argmax(-1) == q.argmax(-1)).cpu().numpy())

    def perplexity(self) -> Perplexity:
        return _perplexity(_joined(self.nll))

    def other_perplexity(self) -> Perplexity:
        return _perplexity(_joined(self.other))

    def distance(self) -> Distance:
        import numpy as np

        a, b, kld = _joined(self.nll), _joined(self.other), _joined(self.kld)
        same = np.concatenate(self.same).mean(dtype=np.float64)
        before, after = _exp(a.mean()), _exp(b.mean())
        ratio = _exp((b - a).mean())
        # The difference's first order: each perplexity times the change of its mean log likelihood.
        slope = after * b - before * a
        return Distance(
            kld_mean=float(kld.mean()),
            kld_error=_error(kld),
            kld_median=float(np.median(kld)),
            kld_p90=float(np.quantile(kld, 0.9)),
            kld_p99=float(np.quantile(kld, 0.99)),
            kld_max=float(kld.max()),
            top1_agreement=float(same),
            top1_error=math.sqrt(float(same * (1 - same)) / max(1, len(kld) - 1)),
            ratio=ratio,
            ratio_error=ratio * _error(b - a),
            difference=after - before,
            difference_error=_error(slope),
        )


def _perplexity(nll: np.ndarray) -> Perplexity:
    value = _exp(nll.mean())
    return Perplexity(len(nll), value, value * _error(nll))


def _exp(value: Any) -> float:
    return math.exp(value) if value < 700 else math.inf


def _error(values: np.ndarray) -> float:
    """Standard error of the mean."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    import numpy as np

    return np.concatenate(parts) if parts else np.zeros(0)


def _double(values: torch.Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
