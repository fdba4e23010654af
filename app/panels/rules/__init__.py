"""The rules of the recipe as a list that can be edited."""
