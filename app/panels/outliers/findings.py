"""The outliers panel in words: its title, its lines of numbers, what lies under the cursor. No Qt."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from app.plotting.words import counted, percent, short

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.panels.outliers.state import OutlierState

NO_INPUTS = (
    "Nothing is known of this tensor's inputs: give an importance matrix or a calibration text, and the largest "
    "activation of each channel appears here."
)


def title(state: OutlierState) -> str:
    """The finding, in one line."""
    result = state.result
    if state.failure:
        return "There is nothing to show of this tensor"
    if result is None:
        return ""
    if not result.count:
        return "The tensor is empty"
    if result.nan + result.infinite:
        first = result.bad[0]
        bad = result.nan + result.infinite
        words = "is NaN or infinite" if bad == 1 else "are NaN or infinite"
        lines = f"row {first.row:,}, column {first.column:,}"
        return f"{counted(bad, 'weight')} {words}: {lines}{' first' if bad > 1 else ''}"
    if state.on_inputs:
        return _input_finding(state)
    if result.rms == 0:
        return "All weights are zero"
    dead = _dead(state)
    return f"{dead} · {_finding(state, brief=True)}" if dead else _finding(state)


def _finding(state: OutlierState, brief: bool = False) -> str:
    """brief: beside another finding, so without the limit, which stands below."""
    result = state.result
    assert result is not None
    weights, share = result.magnitudes.beyond(state.threshold)
    if not weights:
        return f"No weight beyond {_limit_words(state)}; the farthest is {_sigmas(state, result.spots[0].value)} × RMS"
    columns = int(np.count_nonzero(result.column.peak >= np.float32(state.threshold)))
    if weights == 1:
        spot = result.spots[0]
        place = f"row {spot.row:,}, column {spot.column:,}"
        return f"One weight of {_sigmas(state, spot.value)} × RMS at {place}, {percent(100 * share)} of energy"
    held = f"{percent(100 * share)} of energy"
    beyond = "" if brief else f" beyond {_limit_words(state)}"
    return f"{weights:,} {'outliers' if brief else 'weights'} in {counted(columns, 'column')}{beyond}: {held}"


def _dead(state: OutlierState) -> str:
    result = state.result
    assert result is not None
    parts = []
    for lines, word in ((result.column, "column"), (result.row, "row")):
        dead = lines.dead
        if dead.size == 1:
            parts.append(f"{word.capitalize()} {int(dead[0]):,} is all zeros")
        elif dead.size:
            parts.append(f"{dead.size:,} {word}s are all zeros")
    return ", ".join(parts)


def _input_finding(state: OutlierState) -> str:
    values = state.input_values()
    if values is None:
        return "Nothing is known of this tensor's inputs"
    assert state.inputs is not None
    beyond = state.beyond()
    if not beyond.size:
        return f"No input channel reaches {short(state.threshold)}; the largest is {short(float(values.max()))}"
    held = _input_energy(state, beyond)
    channels = counted(int(beyond.size), "input channel")
    if state.inputs.peak is None:
        words = f"{channels} beyond an RMS of {short(state.threshold)}"
    else:
        words = f"{channels} {'reaches' if beyond.size == 1 else 'reach'} {state.threshold:.1f}"
    return f"{words}: {percent(100 * held)} of the inputs' energy" if held else words


def _input_energy(state: OutlierState, beyond: NDArray[np.int64]) -> float:
    rms = state.inputs.rms if state.inputs is not None else None
    if rms is None:
        return 0.0
    squares = rms.astype(np.float64) ** 2
    total = float(squares.sum())
    return float(squares[beyond].sum()) / total if total else 0.0


def _limit_words(state: OutlierState) -> str:
    result = state.result
    assert result is not None
    if state.chosen is None:
        return f"{state.sigmas:g} × RMS"
    return f"{short(state.threshold)} ({state.threshold / result.rms:.1f} × RMS)"


def _sigmas(state: OutlierState, value: float) -> str:
    assert state.result is not None
    times = abs(value) / state.result.rms
    return f"{times:.1f}" if times < 100 else f"{times:,.0f}"


def subtitle(state: OutlierState) -> str:
    """Which tensor, and how much of it has been seen."""
    request, result = state.request, state.result
    if request is None:
        return ""
    tensor = request.tensor
    text = f"{tensor.name}  {'×'.join(map(str, tensor.shape)) or 'scalar'} {tensor.dtype}"
    if result is not None and not result.exact:
        text += f" · {result.seen:,} of {result.rows:,} rows so far"
    if state.others:
        text += f" · first of {state.others + 1:,} selected"
    return text


def notes(state: OutlierState) -> str:
    """What could not be shown, or is shown instead."""
    if state.failure:
        return state.failure
    if state.on_inputs:
        if state.inputs is None:
            return NO_INPUTS
        if state.inputs.peak is None:
            return "An importance matrix holds mean squares: RMS is shown, largest activations are not known"
        if state.inputs.experts:
            return f"The largest of {state.inputs.experts} experts for each channel"
    return ""


def statistics(state: OutlierState) -> str:
    """Size and tails of the whole; what lies beyond the threshold."""
    result = state.result
    if result is None or not result.count or math.isnan(result.rms):
        return ""
    if state.on_inputs:
        return "" if state.input_values() is None else f"threshold {short(state.threshold)}"
    weights, share = result.magnitudes.beyond(state.threshold)
    parts = [f"RMS {short(result.rms)}"]
    if not math.isnan(result.kurtosis):
        parts.append(f"kurtosis {result.kurtosis:,.{1 if result.kurtosis < 1000 else 0}f}")
    if math.isfinite(state.threshold):
        columns = int(np.count_nonzero(result.column.peak >= np.float32(state.threshold)))
        rows = int(np.count_nonzero(result.row.peak >= np.float32(state.threshold)))
        parts.append(
            f"beyond {short(state.threshold)}: {percent(100 * share)} of energy, {counted(weights, 'weight')}, "
            f"{counted(columns, 'column')}, {counted(rows, 'row')}"
        )
    return "   ".join(parts)


def read_off(state: OutlierState, x: float) -> str:
    """What stands at place x of the present axis."""
    result, index = state.result, round(x)
    if result is None or not 0 <= index < state.length:
        return ""
    if state.on_inputs:
        values = state.input_values()
        return "" if values is None else f"channel {index:,}   {state.y_label} {short(float(values[index]))}"
    lines, word = state.lines, state.axis[:-1]
    if lines is None or math.isnan(lines.peak[index]):
        seen = lines is not None and bool(lines.bad[index])
        return f"{word} {index:,}   {'nothing finite' if seen else 'not seen yet'}"
    kurtosis = lines.kurtosis[index]
    text = f"{word} {index:,}   |w| ≤ {short(float(lines.peak[index]))}   "
    text += f"from {short(float(lines.low[index]))} to {short(float(lines.high[index]))}"
    if not math.isnan(kurtosis):
        text += f"   kurtosis {kurtosis:.1f}"
    return text + f"   {percent(100 * state.share(lines, index))} of energy"
