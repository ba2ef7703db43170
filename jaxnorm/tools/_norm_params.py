"""A mask of the parameters that belong to normalizations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, overload

import flax.linen as nn
import jax
from flax import nnx

from jaxnorm.tools.models.bridges import ToLinen, ToNNX, making
from jaxnorm.tools.models.norms import affine_names, is_norm
from jaxnorm.tools.models.programs import Call, as_it_is, names_of, take_model


@overload
def norm_params(
    model: nn.Module,
    variables: Mapping[str, Any],
    /,
    *args: Any,
    call: Call | None = ...,
    rngs: Any = ...,
) -> Any: ...
@overload
def norm_params(model: nnx.Module, /, *args: Any, call: Call | None = ...) -> Any: ...
def norm_params(model: Any, /, *args: Any, call: Call | None = None, rngs: Any = None) -> Any:
    """Says of each parameter of a model whether it is the gamma or beta of a normalization.

    For optax: no weight decay on normalizations (`optax.adamw(..., mask=...)` of the others), or
    training them alone, as TENT does: `optax.partition` with `optax.set_to_zero`, as below.
    (`optax.masked` hands on the raw gradients of all others, which are then added to them.) And
    muon makes any parameter of rank 2 orthogonal, a gamma over two axes or a bank of gammas too:
    `optax.partition({True: optax.adamw(1e-3), False: optax.contrib.muon(1e-2)}, is_norm)` keeps
    norms out of it.

    True are gamma and beta of all normalizations, whatever their names, and nothing else: not the
    parameters that some have besides (the alpha of `DynamicTanh`, the weights of
    `SwitchableNorm`), not the weights of other layers, also where `WeightNorm` or `SpectralNorm` is
    around them, and not their biases, which BitFit trains as well.

    Args:
      model: a linen module, or an NNX model.
      *args: of a linen module its variables, and an example of the arguments that it is called
        with, of which only shapes and dtypes matter. Of an NNX model nothing, or where linen
        models are within it (`flax.nnx.bridge.ToNNX`) such arguments.
      call: (model, *args) -> anything: calls the model, a linen module bound to its variables.
        Default: `model(*args)`.
      rngs: passed to `apply` of a linen module.

    Returns:
      A tree of bool: like `variables["params"]`; of an NNX model like `nnx.state(model,
      nnx.Param)`, with a bool in the place of each parameter, as `nnx.Optimizer` takes it.

    Raises:
      ValueError: the model calls no normalization, or the variables are those of another model.
      TypeError: it is no model of flax, has no variables, or cannot be called with `args`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
      >>> from jaxnorm import tools
      >>> model, x = nn.Sequential([nn.Dense(2), nn.LayerNorm()]), jnp.ones((1, 3))
      >>> variables = model.init(jax.random.key(0), x)
      >>> is_norm = tools.norm_params(model, variables, x)
      >>> is_norm["layers_0"], is_norm["layers_1"]
      ({'bias': False, 'kernel': False}, {'bias': True, 'scale': True})
      >>> decayed = jax.tree.map(lambda norm: not norm, is_norm)
      >>> optimizer = optax.adamw(1e-3, weight_decay=0.1, mask=decayed)
      >>> alone = optax.partition({True: optax.adam(1e-3), False: optax.set_to_zero()}, is_norm)

    References: Wang et al. 2020, Tent, arXiv:2006.10726; Ben Zaken, Goldberg & Ravfogel 2021,
    BitFit, arXiv:2106.10199.
    """
    if isinstance(model, nnx.Module):
        return _nnx_mask(model, args, call, rngs)
    program, args = take_model("norm_params", model, args, call, rngs)
    found = set()

    def note(run, args, kwargs, context):
        # By any method: `RevIN` is called by two others.
        module = context.module
        if is_norm(module):
            found.update((*module.path, name) for name in affine_names(module))
        if not isinstance(module, ToLinen) or context.method_name != "__call__":
            return run(*args, **kwargs)
        with making(module, lambda made: found.update(_affine_paths(made, module.path))):
            return run(*args, **kwargs)

    with nn.intercept_methods(note):
        program.trace(as_it_is, args)

    def is_found(path, leaf) -> bool:
        del leaf
        names = names_of(path)
        # A partitioned parameter lies one step further down, in its box.
        return names in found or names[:-1] in found

    params = program.state.get("params", {})
    return _checked(jax.tree_util.tree_map_with_path(is_found, params), model)


def _nnx_mask(model: nnx.Module, args: tuple, call: Call | None, rngs: Any) -> Any:
    found = set(_affine_paths(model, ()))
    unclear = [path for path, module in nnx.iter_modules(model) if _may_hold_norms(module)]
    if unclear and not args:
        where = ", ".join("/".join(map(str, path)) or "the top" for path in unclear)
        raise ValueError(
            f"norm_params: the linen models behind flax.nnx.bridge.ToNNX at {where} show which "
            "norms they have when they are called: give an example of the model's arguments, "
            "norm_params(model, x)."
        )
    if unclear:

        def note(visit, run, args, kwargs):
            if isinstance(visit.module, nn.Module) and is_norm(visit.module):
                found.update((*visit.path, name) for name in affine_names(visit.module))
            return run(*args, **kwargs)

        program, args = take_model("norm_params", model, args, call, rngs)
        program.trace(note, args)
    variables = nnx.to_flat_state(nnx.state(nnx.clone(model), nnx.Param))
    for path, variable in variables:
        variable.set_raw_value(tuple(map(str, path)) in found)
    return _checked(nnx.as_pure(nnx.from_flat_state(variables)), model)


def _affine_paths(model: nnx.Module, start: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yields where gamma and beta are in an NNX model that lies at `start`."""
    for place, module in nnx.iter_modules(model):
        for name in affine_names(module) if is_norm(module) else ():
            if isinstance(getattr(module, name, None), nnx.Param):
                yield (*start, *map(str, place), name)


def _may_hold_norms(module: nnx.Module) -> bool:
    """Whether it is a linen model with parameters beside which there is no kernel."""
    if not isinstance(module, ToNNX):
        return False
    names = [tuple(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))]
    plain = {path[:-1] for path in names if path[-1] in ("kernel", "embedding")}
    return any(path[:-1] not in plain for path in names)


def _checked(mask: Any, model: Any) -> Any:
    if not any(jax.tree.leaves(mask)):
        raise ValueError(
            f"{type(model).__name__} has no gamma and no beta of a normalization of jaxnorm or "
            "flax; it was run as call says, so that layers which it skips are not found."
        )
    return mask
