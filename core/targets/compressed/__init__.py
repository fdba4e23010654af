"""The target compressed-tensors: the folder in target.py, one module per family of weights, and what they share in
base.py."""
