"""The hidden-state policy network: denoiser blocks on top of the denoiser's last hidden states.

The larger variant of arXiv 2512.09106 (about 300M parameters on LLaDA-8B), published as worse and
less stable than the one on confidences. Before each block, and before the output, a LayerNorm with
per-token scale and shift (AdaLN on mask and time).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_unmask.denoisers.attention import rotary_table
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.transformer import DenoiserBlock
from jax_unmask.policies.base import Needs, Observation
from jax_unmask.policies.layers import (
    LAYER_NORM_EPS,
    Conditioner,
    dense,
    modulation,
    required,
    zero_dense,
)
from jax_unmask.policies.network import NetworkConfig, NetworkInputs
from jax_unmask.settings import Settings, setting_of

_FAMILY = "llada"


@dataclasses.dataclass(frozen=True)
class HiddenNetworkConfig(Settings):
    """Shape of the hidden-state network.

    Attributes:
        denoiser: config of the denoiser whose hidden states are read and whose kind of block is
            used; the policy itself computes in float32.
    """

    denoiser: DenoiserConfig
    time_embed_dim: int = setting_of(NetworkConfig, "time_embed_dim")
    num_blocks: int = setting_of(NetworkConfig, "num_blocks")
    time_period: float = setting_of(NetworkConfig, "time_period")
    initial_bias: float = setting_of(NetworkConfig, "initial_bias")

    def check(self) -> None:
        if self.denoiser.family != _FAMILY:
            raise ValueError(
                f"family={self.denoiser.family!r}: the hidden-state network is made of LLaDA's "
                "blocks; with other denoisers use a network on confidences"
            )

    @property
    def needs(self) -> Needs:
        """Hidden states, and nothing more than the confidence that every policy gets."""
        return Needs(hidden=True)

    @property
    def block_config(self) -> DenoiserConfig:
        """Config of the policy's transformer blocks."""
        return dataclasses.replace(
            self.denoiser, num_layers=self.num_blocks, dtype=jnp.float32, param_dtype=jnp.float32
        )

    def build(self) -> "HiddenNetwork":
        """The linen module of this configuration."""
        return HiddenNetwork(self)

    def observe(self, obs: Observation) -> NetworkInputs:
        """Picks what the network reads; t is step / L."""
        return NetworkInputs(
            masked=obs.masked,
            t=obs.step.astype(jnp.float32) / obs.masked.shape[-1],
            hidden=required(obs.hidden, "hidden", "hidden-state network"),
        )

    def dummy_inputs(self, width: int) -> NetworkInputs:
        """One row of zeros, to initialise parameters with."""
        return NetworkInputs(
            masked=jnp.ones((1, width), bool),
            t=jnp.zeros((1,), jnp.float32),
            hidden=jnp.zeros((1, width, self.denoiser.hidden_size), jnp.float32),
        )


class HiddenNetwork(nn.Module):
    """Maps hidden states to one logit per position; positions count from 0 of what is given."""

    config: HiddenNetworkConfig

    @nn.compact
    def __call__(self, inputs: NetworkInputs) -> Float[Array, "*B W"]:
        """Returns float32 logits; a larger logit means that the position should be filled."""
        cfg = self.config
        block_config = cfg.block_config
        dim = block_config.hidden_size
        lead, width = inputs.masked.shape[:-1], inputs.masked.shape[-1]
        masked = inputs.masked.reshape(-1, width).astype(bool)
        rows = masked.shape[0]
        hidden = required(inputs.hidden, "hidden", "hidden-state network")
        x = hidden.reshape(rows, width, dim).astype(jnp.float32)
        conditions = Conditioner(dim, cfg.time_embed_dim, cfg.time_period, name="conditioner")(
            inputs.t.reshape(rows)
        )

        def normed(x: Array, index: int) -> Array:
            layer = zero_dense(2 * dim, f"modulation_{index}")
            scale, shift = modulation(layer, conditions, masked, 2)
            norm = nn.LayerNorm(epsilon=LAYER_NORM_EPS, name=f"norm_{index}")
            return norm(x) * (1 + scale) + shift

        table = rotary_table(
            jnp.arange(width)[None], block_config.head_dim, block_config.rope_theta
        )
        # In float32 throughout, also on accelerators that round products by default.
        with jax.default_matmul_precision("highest"):
            for index in range(cfg.num_blocks):
                x = normed(x, index).reshape(rows * width, dim)
                block = DenoiserBlock(block_config, name=f"block_{index}")
                x = block(x, table, None, rows)[0].reshape(rows, width, dim)
        output = dense(1, dim, "output", initial_bias=cfg.initial_bias)
        return output(normed(x, cfg.num_blocks)).reshape(*lead, width)
