"""Where weights come from. `open_checkpoint(path)` is the one way in."""
