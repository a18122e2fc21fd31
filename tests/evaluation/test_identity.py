import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jax_unmask.evaluation.identity import digest, essence, tree_hash


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    depth: int = 2


@dataclasses.dataclass(frozen=True)
class Outer:
    name_of_it: str
    inner: Inner
    options: tuple[Inner, ...] = ()
    hidden: bool = dataclasses.field(default=False, repr=False)
    made: list[int] = dataclasses.field(default_factory=list)


class Module(nn.Module):
    config: Inner
    remat: bool = False


def test_essence_holds_what_differs_from_defaults():
    assert essence(Outer("a", Inner(3))) == "Outer(inner=Inner(width=3), name_of_it='a')"
    assert essence(Outer("a", Inner(3), hidden=True)) == essence(Outer("a", Inner(3)))
    assert essence(Outer("a", Inner(3, 4), (Inner(5),), made=[1])) == (
        "Outer(inner=Inner(depth=4, width=3), made=[1], name_of_it='a', options=(Inner(width=5)))"
    )
    assert essence(Module(Inner(1), remat=True)) == "Module(config=Inner(width=1), remat=True)"
    assert essence(Module(Inner(1), name="x")) == "Module(config=Inner(width=1))"


def test_a_new_field_with_a_default_changes_nothing_but_values_do():
    grown = dataclasses.make_dataclass(
        "Inner", [("extra", int, dataclasses.field(default=0)), ("width", int, 7)], frozen=True
    )
    assert essence(grown(width=3)) == essence(Inner(3))
    assert essence(grown(width=3, extra=1)) != essence(Inner(3))


def test_digests_tell_parts_values_and_types_apart():
    assert digest("ab", "c") != digest("a", "bc")
    tree = {"a": jnp.arange(6.0).reshape(2, 3)}
    assert tree_hash(tree) == tree_hash({"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
    assert tree_hash(tree) != tree_hash({"b": tree["a"]})
    assert tree_hash(tree) != tree_hash({"a": tree["a"].astype(jnp.bfloat16)})
    changed = {"a": tree["a"].at[1, 2].set(9.0)}
    assert tree_hash(tree) != tree_hash(changed)
    assert tree_hash(tree, first_rows_only=True) == tree_hash(changed, first_rows_only=True)
