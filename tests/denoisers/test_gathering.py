"""Traffic between devices when matrices are made whole for a product."""

import jax
import jax.extend
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jax_unmask.denoisers.sharding import gathered
from jax_unmask.denoisers.transformer import project

MESH = AbstractMesh((1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def constraints(function, *arguments):
    """Type and layout of all that is put somewhere, in order."""
    with jax.sharding.use_abstract_mesh(MESH):
        traced = jax.make_jaxpr(function)(*arguments)
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "sharding_constraint":
                spec = equation.params["sharding"].spec
                found.append((str(equation.outvars[0].aval.dtype), PartitionSpec(*spec)))
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                walk(inner)

    walk(traced.jaxpr)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrices_travel_in_the_type_of_the_product_and_gradients_in_that_of_the_parameter(dtype):
    kernel, x = jnp.ones((8, 4)), jnp.ones((8, 8), dtype)

    def product(kernel):
        return jnp.sum(x @ gathered(kernel, ("embed", "mlp"), x.dtype))

    whole = (dtype, PartitionSpec(None, "tensor"))
    assert constraints(product, kernel) == [whole]
    back = ("float32", PartitionSpec("fsdp", "tensor"))
    assert constraints(jax.grad(product), kernel) == [whole, back]


def test_so_does_the_table_of_the_vocabulary():
    table, hidden = jnp.ones((6, 8)), jnp.ones((4, 8), jnp.bfloat16)
    first, *_ = constraints(project, table, hidden)
    assert first == ("bfloat16", PartitionSpec("tensor", None))
