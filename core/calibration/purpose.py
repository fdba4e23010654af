"""What a model is run for, as errors say it: calibration, or another task that runs models the same way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Purpose:
    """word       "calibration"
    otherwise  what to do when the model cannot be run
    shorter    what to do when there is too little memory, or too little text
    extra      what installs the libraries for it
    """

    word: str
    otherwise: str = ""
    shorter: str = ""
    extra: str = "calibration"


CALIBRATION = Purpose("calibration", "quantize without calibration", "give a shorter --length")
