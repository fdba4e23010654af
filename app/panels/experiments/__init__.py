"""All runs so far: what they made, how large and how good it is."""
