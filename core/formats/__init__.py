"""What a weight may become: the formats and their registry."""
