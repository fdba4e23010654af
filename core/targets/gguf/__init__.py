"""The GGUF container: Hugging Face models converted, GGUF files quantized anew."""
