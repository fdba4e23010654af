"""Where quantization costs most: the error of every tensor by layer and role, and the worst of them."""
