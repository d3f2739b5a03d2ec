"""Data cards: read through importlib.resources as zoo.cards."""
