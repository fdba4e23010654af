"""The records of model architectures, by family."""
