"""How good it is: perplexity, distance to the original, generation, and the log of all experiments.

text.py cuts a text into windows, perplexity.py lets one or two models predict them, figures.py counts. What is judged
is always a checkpoint (subjects.py): a folder, a GGUF under its model's names, or a recipe that nobody has written yet.
"""
