"""Loading a base, quantizing it, reading its weights back exactly, pooling and heads."""
