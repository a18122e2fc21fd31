"""Measures speed: rollouts, training steps, and other implementations for comparison."""
