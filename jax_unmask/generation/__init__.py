"""What `jax_unmask.generate` is made of: arguments, answers, conversations."""
