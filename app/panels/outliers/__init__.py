"""Large weights and large inputs: where they are, how many, how much they hold."""
