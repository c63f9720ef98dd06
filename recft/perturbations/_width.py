"""Full-width forms of the keyboard's signs, as Chinese keyboards type them, and the way back."""

from __future__ import annotations

__all__ = ["NARROW", "WIDE"]

WIDE = {point: point + 0xFEE0 for point in range(0x21, 0x7F)}
NARROW = {wide: point for point, wide in WIDE.items()}
