"""How work runs: plan, preflight, pipeline, journal, executors."""
