"""Flags are True or False: a string, which is true to Python, is an error wherever it stands."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm
import jaxnorm.drop_in.linen
import jaxnorm.drop_in.nnx
import jaxnorm.linen as jnn
import jaxnorm.nnx as jnx

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 8)), jnp.float32)
KEY = jax.random.key(0)
STATIC = "must be True or False, got 'False'."
TRACED = "must be True, False or a boolean array of rank 0, got 'False'."


def error(name, text):
    return pytest.raises(TypeError, match=f"^{name} {re.escape(text)}")


def init(module, *args, **kwargs):
    return jax.eval_shape(lambda: module.init(KEY, *args, **kwargs))


@pytest.mark.parametrize("name", ["batch", "input", "evo_b0", "switchable", "decorrelated_batch"])
@pytest.mark.parametrize("value", ["False", 1], ids=repr)
def test_whether_to_evaluate(name, value):
    text = TRACED.replace("'False'", repr(value))
    with error("use_running_average", text):
        init(jnn.make(name), X, use_running_average=value)
    with error("use_running_average", text):
        init(jnn.make(name, use_running_average=value), X)
    with error("use_running_average", text):
        jnx.make(name, 8)(X, use_running_average=value)


def test_whether_to_update():
    with error("update_running", TRACED):
        init(jnn.BatchNorm(use_running_average=False), X, update_running="False")
    with error("update_running", TRACED):
        jnx.BatchNorm(8)(X, update_running="False")
    running = jaxnorm.init_running(8)
    for name in ("training", "update_running"):
        with error(name, TRACED):
            jaxnorm.batch_norm_step(X, running, axis=(0, 1), **{"training": True, name: "False"})
    with error("update_stats", STATIC):
        init(jnn.SpectralNorm(nn.Dense(2)), X, update_stats="False")
    layer = jnx.SpectralNorm(nnx.Linear(8, 2, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    with error("update_stats", STATIC):
        layer(X, update_stats="False")


@pytest.mark.parametrize("flag", [True, np.True_, np.array(True), jnp.array(True)], ids=repr)
def test_flags_of_all_kinds(flag):
    y = jnx.BatchNorm(8)(X, use_running_average=flag, update_running=False)
    np.testing.assert_allclose(y, X, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("layer", "use_gamma"),
        ("batch", "unbiased"),
        ("batch", "affine_per_domain"),
        ("rms", "cast_before_gamma"),
        ("cumulative", "decode"),
        ("revin", "stop_gradient"),
        ("filter_response", "use_learned_epsilon"),
    ],
)
def test_options_of_modules(name, option):
    with error(option, STATIC):
        init(jnn.make(name, **{option: "False"}), X)
    with error(option, STATIC):
        jnx.make(name, 8, **{option: "False"})(X)


def test_options_of_wrappers():
    with error("data_dependent_init", STATIC):
        init(jnn.WeightNorm(nn.Dense(2), data_dependent_init="False"), X)
    with error("gate", STATIC):
        init(jnn.AdaptiveNorm(jnn.LayerNorm(), gate="False"), X, X)


def test_options_of_functions():
    moments = jaxnorm.moments(X, axis=(0, 1))
    _, whitening = jaxnorm.whiten(X, axis=(0, 1))
    for name, call in {
        "unbiased": lambda **o: jaxnorm.update_moments(moments, moments, momentum=0.9, **o),
        "debias": lambda **o: jaxnorm.update_moments(moments, moments, momentum=0.9, **o),
        "cast_before_gamma": lambda **o: jaxnorm.rms_norm(X, **o),
        "average": lambda **o: jaxnorm.local_response_norm(X, size=3, **o),
        "center": lambda **o: jaxnorm.divisive_norm(X, window=3, axis=1, **o),
        "norm_before_gate": lambda **o: jaxnorm.gated_rms_norm(X, X, **o),
    }.items():
        with error(name, STATIC):
            call(**{name: "False"})
    with error("unbiased", STATIC):
        jaxnorm.update_whitening(whitening, whitening, momentum=0.9, unbiased="False")


def test_drop_ins_take_what_flax_takes_but_strings():
    for value in (1, True):
        module = jaxnorm.drop_in.nnx.BatchNorm(8, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(module(X, use_running_average=value), X, rtol=1e-4)
    with error("use_running_average", TRACED):
        module(X, use_running_average="False")
    with error("use_running_average", TRACED):
        init(jaxnorm.drop_in.linen.BatchNorm(use_running_average="False"), X)


@pytest.mark.parametrize("package", ["linen", "nnx"])
def test_a_star_import_brings_norms_alone(package):
    names = {"inspect": "mine"}
    exec(f"from jaxnorm.drop_in.{package} import *", names)
    names.pop("__builtins__")
    more = {"linen": "everywhere", "nnx": "replace"}[package]
    norms = {"BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm"}
    assert set(names) == norms | {more, "inspect"} and names["inspect"] == "mine"
