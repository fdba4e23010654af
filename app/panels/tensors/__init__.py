"""The tensor table: every output tensor, what becomes of it, and what it costs."""
