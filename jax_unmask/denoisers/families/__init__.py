"""The published checkpoint formats, one module each."""

from collections.abc import Mapping
from typing import Any

from jax_unmask import notation
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.families.base import Family, TensorSpec
from jax_unmask.denoisers.sampling import Sampling

__all__ = [
    "FAMILIES",
    "FIELD",
    "PUBLISHED",
    "Family",
    "TensorSpec",
    "complete",
    "find",
    "named",
    "of",
    "published_config",
    "to_hf",
]

FIELD = "jax_unmask_family"
"""Field of a `config.json` that holds the import path of its family, for families from outside."""
_NAMES = notation.Names(
    "family",
    {
        "llada": "llada.FAMILY",
        "dream": "dream.FAMILY",
        "sdar": "sdar.FAMILY",
        "sdar_moe": "sdar.MOE_FAMILY",
        "llada_moe": "llada_moe.FAMILY",
        "llada2_moe": "llada2.FAMILY",
    },
    package="jax_unmask.denoisers.families",
)
FAMILIES: tuple[Family, ...] = tuple(_NAMES(name) for name in _NAMES)
PUBLISHED = {name: family for family in FAMILIES for name in family.published}
"""Families by the hub names of models whose shape is known without their files."""


def named(name: str) -> Family:
    """The family of that name (`DenoiserConfig.family`): one of these, or an import path.

    Raises:
        ValueError: there is none.
    """
    family = _NAMES(name)
    if not isinstance(family, Family) or family.name != name:
        found = f"name {family.name!r}" if isinstance(family, Family) else repr(family)
        raise notation.NotationError(
            name, f"a family from outside is a Family whose name is its import path, not {found}"
        )
    return family


def find(fields: Mapping[str, Any]) -> Family | None:
    """The family of a `config.json`, or None.

    If several families have this `model_type` (published LLaDA-MoE files have "llada", too), the
    class name decides.
    """
    if fields.get(FIELD):
        return named(fields[FIELD])
    named_so = [f for f in FAMILIES if fields.get("model_type") in f.model_types]
    for family in named_so:
        if set(family.architectures) & set(fields.get("architectures") or ()):
            return family
    return named_so[0] if named_so else None


def of(fields: Mapping[str, Any]) -> Family:
    """The family of a `config.json`.

    Raises:
        ValueError: there is none.
    """
    family = find(fields)
    if fields.get("model_type") == "diffusion_gemma":
        raise ValueError(
            "config.json: model_type='diffusion_gemma' is no masked model; load it with "
            "denoisers.diffusion_gemma.load"
        )
    if family is None:
        raise ValueError(
            f"config.json: model_type={fields.get('model_type')!r} is not a known family; "
            f"supported: {', '.join(family.model_types[0] for family in FAMILIES)}; {FIELD} may "
            "name one of your own (docs/extending.md)"
        )
    return family


def to_hf(config: DenoiserConfig) -> dict[str, Any]:
    """The `config.json` of a config, in the format of its family."""
    family = named(config.family)
    fields = {"architectures": [family.architectures[0]], "model_type": family.model_types[0]}
    fields |= family.config_to_hf(config)
    fields |= {} if config.family in _NAMES else {FIELD: config.family}
    return dict(sorted(fields.items()))


def sampling(name: str, top_k: int, top_p: float) -> Sampling:
    """Sampling settings of a family's published sampler, with these filters.

    Raises:
        ValueError: there is no such family, or a filter is out of range.
    """
    family = named(name)
    return Sampling(
        top_k=top_k,
        top_p=top_p,
        top_p_first=family.top_p_first,
        filtered_confidence=family.draws_from_filtered,
    )


def complete(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `config.json`, with the family's mask token where the file has none."""
    fields = dict(fields)
    if fields.get("mask_token_id") is None:
        family = find(fields)
        known = {} if family is None else family.mask_token_ids
        fields["mask_token_id"] = known.get(fields.get("vocab_size", 0))
    return fields


def published_config(name: str) -> DenoiserConfig:
    """Config of a published model by its hub name.

    Raises:
        KeyError: its shape is not known here.
    """
    family = PUBLISHED[name]
    fields = {
        "model_type": family.model_types[0],
        "architectures": family.architectures[:1],
        **family.published[name],
    }
    return family.config_from_hf(complete(fields))
