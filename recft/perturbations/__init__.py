"""One file per way of spoiling a text."""
