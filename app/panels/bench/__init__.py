"""The strategy bench: the selected tensors under any set of strategies, as a table and as size against error."""
