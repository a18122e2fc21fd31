"""Unmasking policies in PyTorch, for serving; needs torch and safetensors, not JAX."""
