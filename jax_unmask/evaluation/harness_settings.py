"""Settings of models in lm-evaluation-harness, which need no harness to be read."""

import dataclasses

from jax_unmask import policies
from jax_unmask.denoisers import DenoiserConfig
from jax_unmask.environment.settings import RunSettings
from jax_unmask.policies import Params, Policy
from jax_unmask.rollout import RolloutSettings, check_rollout
from jax_unmask.settings import Settings, naming, setting, setting_of


@dataclasses.dataclass(frozen=True)
class HarnessSettings(Settings):
    """Settings of a model that answers the harness."""

    policy: str = setting(policies.DEFAULT, "Policy of texts, in the notation of policies.")
    gen_length: int = setting_of(RolloutSettings, "gen_length")
    block_length: int = setting_of(RolloutSettings, "block_length")
    batch_size: int = setting(16, "Prompts per rollout.", ge=1)
    mc_draws: int = setting(128, "Masks per likelihood.", ge=1)
    mc_batch_size: int = setting(32, "Masks of a text per forward, a divisor of mc_draws.", ge=1)
    mc_together: int = setting(4, "Texts per forward whose likelihood is estimated.", ge=1)
    check_greedy: bool = setting(
        False, "Also say whether texts are the greedy ones, which costs a forward per token."
    )
    seed: int = setting_of(RunSettings, "seed")

    def check(self) -> None:
        self.require_divides("block_length", "gen_length")
        self.require_divides("mc_batch_size", "mc_draws")

    @property
    def rollouts(self) -> RolloutSettings:
        """The shape of the rollouts."""
        return RolloutSettings(gen_length=self.gen_length, block_length=self.block_length)

    def environment(self, name: str) -> dict[str, str | int]:
        """The environment of the policy, for a denoiser of that name; see `parse_policy`."""
        return {"denoiser": name, **self.rollouts.environment}

    def parse(self, name: str, denoiser: DenoiserConfig) -> tuple[Policy, Params]:
        """The policy and its parameters for a denoiser of that name and shape.

        Raises:
            ValueError: it cannot be read, or does not fit there.
        """
        environment = self.environment(name)
        with naming("policy", self.policy):
            policy, params = policies.parse_policy(self.policy, environment=environment)
        check_rollout(self.policy, policy, params, denoiser, self.rollouts)
        return policy, params
