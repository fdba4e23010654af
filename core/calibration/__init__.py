"""What flows through the layers: text to activations to statistics."""
