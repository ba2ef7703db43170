"""Every module has a name, and every name makes its module."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx
from jaxnorm._layers.names import NAMES, NUMBERS


@pytest.mark.parametrize("package", [jnn, jnx])
def test_every_module_has_one_name(package):
    modules = [name for name in package.__all__ if isinstance(getattr(package, name), type)]
    named = [NAMES[name] for name in package.names()]
    assert sorted(named) == sorted(modules)
    assert set(jnx.names()) <= set(jnn.names()) == set(NAMES)


def test_linen_modules_are_made_by_name():
    inner = {"adaptive": (jnn.LayerNorm(),), "spade": (jnn.InstanceNorm(),)}
    inner |= dict.fromkeys(("spectral", "weight", "weight_standardization"), (nn.Dense(2),))
    inner |= dict.fromkeys(("layer_lstm_cell", "layer_gru_cell"), (4,))
    needed = {"local_response": {"size": 5}, "graph": {"num_segments": 2}}
    needed |= {"divisive": {"window": 3}}
    for name in jnn.names():
        module = jnn.make(name, *inner.get(name, ()), **needed.get(name, {}))
        assert type(module).__name__ == NAMES[name]
    for name, option in NUMBERS.items():
        for text in (f"{name}16", f"{name}_16"):
            assert getattr(jnn.make(text), option) == 16
    assert jnn.make("group32", epsilon=0.5) == jnn.GroupNorm(num_groups=32, epsilon=0.5)


def test_a_module_that_is_made_by_its_name_can_be_named_in_a_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnn.make("rms", name="before")(x)
            return jnn.make("group2", name="after", parent=self, use_beta=False)(x)

    params = jax.eval_shape(Net().init, jax.random.key(0), jnp.ones((2, 4)))["params"]
    assert {name: sorted(values) for name, values in params.items()} == {
        "before": ["gamma"],
        "after": ["gamma"],
    }
    assert jnn.make("layer", parent=None).parent is None


def test_nnx_modules_are_made_by_name():
    norm = jnx.make("group4", 8, use_beta=False)
    assert (type(norm), norm.num_groups, norm.beta) == (jnx.GroupNorm, 4, None)
    dense = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    assert isinstance(jnx.make("weight", dense), jnx.WeightNorm)


def test_errors():
    with pytest.raises(ValueError) as error:
        jnn.make("batchnorm")
    assert str(error.value) == (
        "unknown normalization 'batchnorm'; did you mean 'batch'? jaxnorm.linen has: "
        f"{', '.join(jnn.names())}. A number may follow {', '.join(NUMBERS)}, as in 'group32'."
    )
    for name, near in {
        "LayerNorm": "layer",
        "rmsnorm": "rms",
        "grup32": "group",
        "": "",
        3: "",
    }.items():
        with pytest.raises(ValueError, match=f"did you mean '{near}"):
            jnx.make(name, 8)
    with pytest.raises(ValueError, match="did you mean 'group'"):
        jnn.make("GROUP8")
    with pytest.raises(ValueError, match="did you mean 'layer'"):
        jnn.make("layer3")
    with pytest.raises(ValueError) as error:
        jnn.make("group32", num_groups=8)
    assert str(error.value) == "'group32' says num_groups=32, and options say 8; give one."
