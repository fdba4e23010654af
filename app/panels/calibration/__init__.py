"""The calibration panel: what flows through the layers, and the loss of a calibrated run as it goes."""
