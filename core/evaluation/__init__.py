"""How good it is: perplexity, KLD, generation."""
