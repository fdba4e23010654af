"""The selected tensor's weights against the levels of its strategy."""
