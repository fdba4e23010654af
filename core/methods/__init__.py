"""How codes are chosen: the methods and their registry."""
