"""Texts that must have a form: automata over characters, over tokens, and what a model's prediction becomes of them."""
