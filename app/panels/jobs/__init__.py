"""Running and finished work."""
