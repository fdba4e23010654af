"""What is known of the selected tensors, in words and numbers."""
