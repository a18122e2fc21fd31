"""Answers that responses give, and their comparison with the right ones.

`answers` is what the tasks use by default, `latex` compares LaTeX strings, and `published` holds
the parsers that published numbers were made with, faults included.
"""
