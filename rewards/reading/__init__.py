"""How a model of any tokenizer reads a relaxed text."""
