"""Measurements that the design rests on. `python -m benchmarks` runs them all; each module's docstring holds the floor
below which a change is a regression, and what was expected and why."""
