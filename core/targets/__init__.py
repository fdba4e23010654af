"""Where codes go: the containers and their registry."""
