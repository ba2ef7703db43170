"""Models of linen and NNX within each other, by `flax.nnx.bridge`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from flax import nnx
from flax.nnx.bridge import ToLinen as ToLinen
from flax.nnx.bridge import ToNNX as ToNNX

from jaxnorm.tools.models.norms import instead


@contextlib.contextmanager
def making(module: ToLinen, prepare: Callable[[nnx.Module], Any]) -> Iterator[None]:
    """Has `prepare` called with the NNX model that a call of `module` makes, before that runs."""
    make = module.nnx_class

    def prepared(*args: Any, **kwargs: Any) -> Any:
        model = make(*args, **kwargs)
        prepare(model)
        return model

    with instead(module, {"nnx_class": prepared}):
        yield


def linen_paths(module: ToNNX, kind: Any) -> frozenset[tuple[str, ...]]:
    """Returns where the modules with variables of `kind` are, within a linen model for NNX."""
    variables = nnx.to_flat_state(nnx.state(module, kind))
    return frozenset(tuple(map(str, path[:-1])) for path, _ in variables)
