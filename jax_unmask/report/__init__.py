"""Frontiers of accuracy against NFE: comparisons, tables and pictures."""
