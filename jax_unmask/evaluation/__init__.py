"""Measures policies: accuracy, denoiser forwards and time over held-out problems."""
