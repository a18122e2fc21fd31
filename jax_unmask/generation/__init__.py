"""The parts of `jax_unmask.generate`: arguments, answers, conversations."""
