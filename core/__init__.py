"""The engine of Quantbench: checkpoints, formats, methods, recipes, targets, jobs. No Qt, no globals, no printing.

Importing `core` costs milliseconds: torch, numba and transformers are imported inside the functions that need them.
"""

__version__ = "0.1.0"
