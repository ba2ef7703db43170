"""The thin modules of the catalogue: each is its function, its parameters start as it says."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen as jnn
from tests.support.jaxpr_text import program

pytestmark = pytest.mark.quickly_compiled

SHAPE = (2, 5, 3, 8)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Thin:
    """A module, the function of the same name, and what the parameters start at.

    Attributes:
      name: shown in test ids.
      module: without variables.
      function: (x, parameters, mask) -> what the module returns.
      starts: the shape and the first value of each parameter.
      masked: whether the call takes a mask.
      always: parameters that no field leaves out.
    """

    name: str
    module: object
    function: object
    starts: dict
    masked: bool = True
    always: tuple[str, ...] = ()

    def apply(self, params, x, module=None, **options):
        """The result; running statistics may move, and are dropped."""
        shapes = jax.eval_shape(self.module.init, jax.random.key(0), x)
        rest = jax.tree.map(lambda v: np.ones(v.shape, v.dtype), {**shapes, "params": {}})
        variables = {**rest, "params": params}
        module = self.module if module is None else module
        return module.apply(variables, x, **options, mutable=["batch_stats"])[0]


# Their sums are about the running mean, those of their functions are not.
AVERAGED = ("evo_norm_b0", "switchable_norm", "batch_instance_norm")
CHANNELS = {"gamma": ((8,), 1.0), "beta": ((8,), 0.0)}

THIN = [
    Thin(
        name="scale_norm",
        module=jnn.ScaleNorm(reduction_axes=(1, -1)),
        function=lambda x, p, **o: jaxnorm.lp_norm(x, p["gamma"], axis=(1, 3), epsilon=1e-5, **o),
        starts={"gamma": ((), 40**0.5)},
    ),
    Thin(
        name="local_response_norm",
        module=jnn.LocalResponseNorm(size=5, alpha=1.0, average=False),
        function=lambda x, p: jaxnorm.local_response_norm(x, size=5, alpha=1.0, average=False),
        starts={},
        masked=False,
    ),
    Thin(
        name="divisive_norm",
        module=jnn.DivisiveNorm(window=(3, 5)),
        function=lambda x, p, **o: jaxnorm.divisive_norm(x, **p, axis=(1, 2), window=(3, 5), **o),
        starts={**CHANNELS, "sigma": ((8,), 1.0)},
    ),
    Thin(
        name="filter_response_norm",
        module=jnn.FilterResponseNorm(use_learned_epsilon=True),
        function=lambda x, p, **o: jaxnorm.filter_response_norm(x, **p, **o),
        starts={**CHANNELS, "tau": ((8,), 0.0), "learned_epsilon": ((8,), 1e-4)},
    ),
    Thin(
        name="global_response_norm",
        module=jnn.GlobalResponseNorm(channel_axis=1),
        function=lambda x, p, **o: jaxnorm.global_response_norm(x, **p, channel_axis=1, **o),
        starts={"gamma": ((5,), 0.0), "beta": ((5,), 0.0)},
    ),
    Thin(
        name="dynamic_tanh",
        module=jnn.DynamicTanh(),
        function=lambda x, p: jaxnorm.dynamic_tanh(x, **p),
        starts={**CHANNELS, "alpha": ((), 0.5)},
        masked=False,
    ),
    Thin(
        name="dynamic_erf",
        module=jnn.DynamicErf(feature_axes=(1, 3)),
        function=lambda x, p: jaxnorm.dynamic_erf(x, **p, feature_axes=(1, 3)),
        starts={
            "gamma": ((5, 8), 1.0),
            "beta": ((5, 8), 0.0),
            "alpha": ((), 0.5),
            "shift": ((), 0.0),
        },
        masked=False,
    ),
    Thin(
        name="layer_scale",
        module=jnn.LayerScale(),
        function=lambda x, p: x * jax.lax.expand_dims(p["gamma"], (0, 1, 2)),
        starts={"gamma": ((8,), 1e-5)},
        masked=False,
        always=("gamma",),
    ),
    Thin(
        name="poly_norm",
        module=jnn.PolyNorm(),
        function=lambda x, p, **o: jaxnorm.poly_norm(x, **p, **o),
        starts={"weights": ((3,), 1 / 3), "bias": ((), 1.0)},
    ),
    Thin(
        name="evo_norm_s0",
        module=jnn.EvoNormS0(num_groups=4),
        function=lambda x, p, **o: jaxnorm.evo_norm_s0(x, **p, num_groups=4, **o),
        starts={**CHANNELS, "v": ((8,), 1.0)},
    ),
    Thin(
        name="evo_norm_b0",
        module=jnn.EvoNormB0(use_running_average=False),
        function=lambda x, p, **o: jaxnorm.evo_norm_b0(x, **p, axis=(0, 1, 2), **o)[0],
        starts={**CHANNELS, "v": ((8,), 1.0)},
    ),
    Thin(
        name="switchable_norm",
        module=jnn.SwitchableNorm(use_running_average=False),
        function=lambda x, p, **o: jaxnorm.switchable_norm(x, **p, **o)[0],
        starts={**CHANNELS, "mean_weights": ((3,), 1.0), "var_weights": ((3,), 1.0)},
    ),
    Thin(
        name="batch_instance_norm",
        module=jnn.BatchInstanceNorm(use_running_average=False),
        function=lambda x, p, **o: jaxnorm.batch_instance_norm(x, **p, **o)[0],
        starts={**CHANNELS, "rho": ((8,), 1.0)},
    ),
    Thin(
        name="cumulative_norm",
        module=jnn.CumulativeNorm(reduction_axes=(2, 3)),
        function=lambda x, p, **o: jaxnorm.cumulative_norm(x, **p, axis=(2, 3), **o)[0],
        starts=CHANNELS,
    ),
]


@pytest.mark.parametrize("thin", THIN, ids=[t.name for t in THIN])
def test_is_its_function(thin, rng):
    x = jnp.asarray(rng.normal(0.5, 2, SHAPE), jnp.float32)
    params = jax.eval_shape(thin.module.init, jax.random.key(0), x).get("params", {})
    first = jax.jit(thin.module.init)(jax.random.key(0), x).get("params", {})
    assert set(params) == set(thin.starts)
    for name, (shape, value) in thin.starts.items():
        assert first[name].shape == shape and first[name].dtype == jnp.float32
        np.testing.assert_array_equal(first[name], np.full(shape, value, np.float32))
    drawn = {
        n: jnp.asarray(rng.normal(1, 0.3, s), jnp.float32) for n, (s, _) in thin.starts.items()
    }
    masks = [{}]
    if thin.masked:
        masks.append({"mask": jnp.asarray(rng.random(SHAPE) < 0.8)})
    if thin.name in AVERAGED:

        @jax.jit
        def both(params, x):
            calls = [(thin.apply(params, x, **m), thin.function(x, params, **m)) for m in masks]
            return list(zip(*calls, strict=True))

        chex.assert_trees_all_close(*both(drawn, x), atol=2e-6)
    else:
        for mask in masks:
            mine = program(lambda p, x, mask=mask: thin.apply(p, x, **mask), drawn, x)
            assert mine == program(lambda p, x, mask=mask: thin.function(x, p, **mask), drawn, x)
    half = thin.module.clone(dtype=jnp.bfloat16)
    assert jax.eval_shape(lambda: thin.apply(drawn, x, half)).dtype == jnp.bfloat16


@pytest.mark.parametrize("thin", THIN, ids=[t.name for t in THIN])
def test_parameters_can_be_left_out_or_given(thin, rng):
    x = jnp.asarray(rng.normal(0.5, 2, SHAPE), jnp.float32)
    for name in ("gamma", "beta"):
        if name not in thin.starts:
            continue
        if name not in thin.always:
            without = thin.module.clone(**{f"use_{name}": False})
            shapes = jax.eval_shape(without.init, jax.random.key(0), x)
            assert name not in shapes.get("params", {})
        params = jax.eval_shape(thin.module.init, jax.random.key(0), x)["params"]
        value = params[name]

        def given(params, value, x, name=name):
            return thin.apply(params, x, **{name: value})

        def own(params, value, x, name=name):
            return thin.apply({**params, name: value}, x)

        if thin.name == "cumulative_norm":  # the same operations in another order
            two = jax.jit(lambda *args, given=given, own=own: (given(*args), own(*args)))
            params, value = (
                jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), tree)
                for tree in (params, value)
            )
            np.testing.assert_array_equal(*two(params, value, x))
        else:
            assert program(given, params, value, x) == program(own, params, value, x)
