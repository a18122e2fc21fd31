"""Learned unmasking policies for masked diffusion language models, in JAX and Flax.

The parts are imported by name, so that importing the package costs nothing:

    from jax_unmask import denoisers, policies, rollout
"""

__version__ = "0.1.0"
