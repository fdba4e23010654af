"""What happened, with times."""
