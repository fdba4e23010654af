"""GGML's block formats: the table of types (types.py), bytes to numbers (decode.py), and the formats built on both."""
