"""A package outside medfed that brings steps of its own: a researcher's method, and attacks."""
