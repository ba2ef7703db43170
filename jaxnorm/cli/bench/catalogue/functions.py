"""The entries of the catalogue: each function as it is called, in natural shapes."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxnorm
from jaxnorm.cli.bench.cases import SEGMENTS
from jaxnorm.cli.bench.catalogue import by_hand, weights
from jaxnorm.cli.bench.catalogue.entry import Call, Entry, Shape

TOKENS, IMAGES, SERIES, NODES = (4096, 768), (8, 56, 56, 64), (16, 400, 256), (100_000, 32)
WINDOWED, SMALL = (6, 96, 96, 48), (8, 28, 28, 64)
BATCH = (0, 1, 2)


def list_entries() -> list[Entry]:
    """Returns the catalogue: norms of examples, of batches, of graphs, of windows, of weights."""
    return [
        *_of_tokens(),
        *_of_images(),
        *_of_batches(),
        *_of_whitening(),
        *(make_segments(name, 60) for name in SEGMENTS),
        make_segments("segment_batch_norm", 2000),
        _affine("cumulative_norm", SERIES, axis=-1),
        make_window("local_response_norm", 5),
        make_window("divisive_norm", 15),
        make_window("divisive_norm", 31),
        *weights.list_entries(),
    ]


def _affine(name: str, shape: Shape, count: int = 2, kind: str = "", **options: Any) -> Entry:
    """Returns an entry of a function of x and parameters of one value per channel."""
    call = functools.partial(getattr(jaxnorm, name), **options)
    return Entry(name, shape, call, (shape[-1:],) * count, kind=kind)


def _of_tokens() -> list[Entry]:
    features = TOKENS[-1:]
    statistics = (np.zeros(TOKENS[:1], np.float32), np.ones(TOKENS[:1], np.float32))

    def standardize(x, gamma, beta, mean, var):
        moments = jaxnorm.Moments(mean, var, jnp.ones(()))
        return jaxnorm.standardize(x, moments, gamma, beta, axis=-1, feature_axes=-1, epsilon=1e-5)

    return [
        _affine("layer_norm", TOKENS, kind="layer"),
        _affine("rms_norm", TOKENS, 1, kind="rms"),
        _affine("lp_norm", TOKENS, 1),
        Entry("gated_rms_norm", TOKENS, jaxnorm.gated_rms_norm, (TOKENS, features)),
        Entry("poly_norm", TOKENS, jaxnorm.poly_norm, ((3,), ())),
        Entry("dynamic_tanh", TOKENS, jaxnorm.dynamic_tanh, ((), features, features)),
        Entry("dynamic_erf", TOKENS, jaxnorm.dynamic_erf, ((), (), features, features)),
        Entry("standardize", TOKENS, standardize, (features,) * 2, statistics),
    ]


def _of_images() -> list[Entry]:
    return [
        _affine("group_norm", IMAGES, kind="group", num_groups=32),
        _affine("instance_norm", IMAGES, kind="instance"),
        _affine("filter_response_norm", IMAGES),
        _affine("global_response_norm", IMAGES),
        _affine("evo_norm_s0", IMAGES, 3),
        _affine("evo_norm_s1", IMAGES),
        _affine("evo_norm_s2", IMAGES),
        Entry("adaptive_instance_norm", IMAGES, jaxnorm.adaptive_instance_norm, (IMAGES,)),
    ]


def _of_batches() -> list[Entry]:
    channels = IMAGES[-1:]
    running = (np.zeros(channels, np.float32), np.ones(channels, np.float32))

    def with_running(name: str, kind: str = "", **options: Any) -> Entry:
        function = getattr(jaxnorm, name)

        def call(x, gamma, beta, mean, var):
            moments = jaxnorm.Moments(mean, var, jnp.ones(channels))
            return function(x, moments, gamma, beta, axis=BATCH, **options)

        return Entry(name, IMAGES, call, (channels,) * 2, running, kind=kind)

    return [
        _affine("batch_norm", IMAGES, axis=BATCH),
        with_running("batch_norm_step", "batch", training=True),  # libraries move statistics too
        with_running("batch_renorm", r_max=3.0, d_max=5.0),
        with_running("blended_batch_norm", weight=0.5),
        _affine("ghost_batch_norm", IMAGES, axis=BATCH, num_virtual_batches=4),
        _affine("evo_norm_b0", IMAGES, 3, axis=BATCH),
        _affine("evo_norm_b1", IMAGES, axis=BATCH),
        _affine("evo_norm_b2", IMAGES, axis=BATCH),
        _affine("batch_instance_norm", IMAGES, 3),
        Entry("switchable_norm", IMAGES, jaxnorm.switchable_norm, ((3,), (3,), channels, channels)),
    ]


def _of_whitening() -> list[Entry]:
    channels = SMALL[-1]
    statistics = (np.zeros(channels, np.float32), np.eye(channels, dtype=np.float32)[None])

    def decorrelate(x, gamma, beta, mean, projection):
        whitening = jaxnorm.Whitening(mean, projection, jnp.ones(()))
        return jaxnorm.decorrelate(x, whitening, gamma, beta, axis=BATCH)

    return [
        _affine("whiten", SMALL, axis=BATCH),
        Entry("decorrelate", SMALL, decorrelate, ((channels,),) * 2, statistics),
    ]


def make_segments(name: str, number: int) -> Entry:
    """Returns a norm of the nodes of graphs, in no order and of unequal sizes."""
    # More of them in the first graphs.
    ids = number * np.random.default_rng(0).random(NODES[0]) ** 2
    count = {"segment_batch_norm": 2, "graph_norm": 3, "pair_norm": 0}[name]
    options: dict[str, Any] = {"axis": 0} if name == "segment_batch_norm" else {}
    names = ("alpha", "gamma", "beta")[3 - count :]

    def call(x, *arrays):
        *parameters, ids = arrays
        named = dict(zip(names, parameters, strict=True))
        return getattr(jaxnorm, name)(x, ids, num_segments=number, **named, **options)

    return Entry(
        name,
        NODES,
        call,
        (NODES[-1:],) * count,
        (ids.astype(np.int32),),
        f"{number} segments",
        others={"by hand": functools.partial(getattr(by_hand, name), number=number)},
    )


def make_window(name: str, size: int) -> Entry:
    """Returns a norm by local statistics: of pixels around each, or of channels."""
    if name == "local_response_norm":
        options: dict[str, int] = {"size": size}
        count, places = 0, {}
    else:
        options, count, places = {"window": size}, 2, {"axis": (1, 2)}
    call: Call = functools.partial(getattr(jaxnorm, name), **options, **places)
    hand = functools.partial(getattr(by_hand, name), **options)
    return Entry(
        name,
        WINDOWED,
        call,
        (WINDOWED[-1:],) * count,
        detail=f"window {size}",
        others={"by hand": hand},
        torch=functools.partial(getattr(by_hand, f"torch_{name}"), **options),
    )
