"""Recipes, by task: read through importlib.resources as zoo.recipes."""
