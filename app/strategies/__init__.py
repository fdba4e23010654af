"""Choosing a strategy: what tensors can take, and the popover in which it is chosen. Shared by table, map and bench."""
