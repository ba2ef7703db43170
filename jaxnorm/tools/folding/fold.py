"""Batch norms in evaluation that become part of the linear layers before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import flax.linen as nn
import jax
from flax import nnx, traverse_util
from flax.core import unfreeze

from jaxnorm._core.moments import Moments
from jaxnorm.linen._wrapper import rebox, unbox
from jaxnorm.tools.folding.kernel import fold_kernel
from jaxnorm.tools.folding.pairs import STATISTICS, find_pairs
from jaxnorm.tools.folding.search import Pair
from jaxnorm.tools.models.norms import NORM_CALLS, instead
from jaxnorm.tools.models.programs import Call, LinenProgram, names_of, take_model


class Folded:
    """A model whose batch norms have become part of the layers before them.

    Attributes:
      variables: of the folded model: kernels and biases are new, and gamma, beta and running
        statistics of the norms that are gone are missing. Of an NNX model, its state.
      pairs: the path of each layer that took up a norm, and the norm's.
      kept: the path of each batch norm that stays, and the reason.
    """

    def __init__(self, program: Any, pairs: list[Pair], kept: list[tuple[Any, str]]):
        self.pairs = [("/".join(p.layer.path), "/".join(p.norm.path)) for p in pairs]
        self.kept = [("/".join(path), reason) for path, reason in kept]
        self.variables = program.state
        self._program = program
        self._norms = {pair.norm.path: pair.norm.dtype for pair in pairs}
        self._without_bias = {pair.layer.path for pair in pairs if "bias" not in pair.layer.ranks}

    def apply(self, variables: Any, *args: Any) -> Any:
        """Computes the model in evaluation, of `variables` such as those here.

        Args:
          variables: as the attribute; they may have been trained further.
          *args: the arguments of the call, of any batch and image size.

        Raises:
          ValueError: the variables are not those of the folded model.
        """
        expected, got = _paths(self.variables), _paths(variables)
        if got != expected:
            raise ValueError(
                "variables must be those of the folded model, such as the attribute variables; "
                f"missing are {sorted(expected - got)}, too many are {sorted(got - expected)}."
            )
        return self._program.run(variables, args, self._skip_norms, self)

    def _skip_norms(self, visit, run, args, kwargs):
        if visit.path in self._norms and visit.function in NORM_CALLS:
            x, dtype = args[0] if args else kwargs["x"], self._norms[visit.path]
            return x if dtype is None else x.astype(dtype)
        if visit.path in self._without_bias:
            with instead(visit.module, {"use_bias": True}):
                return run(*args, **kwargs)
        return run(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Folded(pairs={self.pairs!r}, kept={self.kept!r})"


def _paths(variables: Any) -> set[str]:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {"/".join(names_of(path)) for path, _ in leaves}


@overload
def fold(
    model: nn.Module,
    variables: Mapping[str, Any],
    /,
    *args: Any,
    call: Call | None = ...,
    rngs: Any = ...,
) -> Folded: ...
@overload
def fold(model: nnx.Module, /, *args: Any, call: Call | None = ...) -> Folded: ...
def fold(model: Any, /, *args: Any, call: Call | None = None, rngs: Any = None) -> Folded:
    """Makes each batch norm of a model in evaluation part of the linear layer before it.

    A dense layer or convolution (grouped, depthwise, dilated) or transposed convolution, with or
    without a bias, takes up the batch norm that alone uses its output; see `fold_kernel`. What is
    computed is the same within rounding, and nothing of the norm is left in it. Which layer is
    before which norm is read from the program of the model, not from names; layers under scan,
    vmap and remat are folded, too. A batch norm that cannot be folded stays, with the reason: its
    input is used elsewhere, an activation lies between, it normalizes by the batch.

    Args:
      model: a linen module, or an NNX model, taken as `model.eval()` sets it; it stays as it is.
      *args: of a linen module its variables first; then an example of the arguments that it is
        called with, of which only shapes and dtypes matter.
      call: (model, *args) -> output: calls the bound model for evaluation. Default:
        `model(*args)`.
      rngs: passed to `apply` of a linen module.

    Returns:
      A `Folded`: `apply(variables, *args)`, `variables`, `pairs` and `kept`. Gradients flow to its
      variables, so that it can be trained on.

    Raises:
      ValueError: the model calls no batch norm, the variables have no `batch_stats`, or are those
        of another model.
      TypeError: it is no model of flax, has no variables, or cannot be called with `args`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> from jaxnorm import tools
      >>> norm = jnn.BatchNorm(use_running_average=True)
      >>> model, x = nn.Sequential([nn.Dense(2), norm, nn.relu]), jnp.ones((1, 3))
      >>> variables = model.init(jax.random.key(0), x)
      >>> folded = tools.fold(model, variables, x)
      >>> folded.pairs, folded.kept, list(folded.variables["params"])
      ([('layers_0', 'layers_1')], [], ['layers_0'])
      >>> y, expected = folded.apply(folded.variables, x), model.apply(variables, x)
      >>> bool(jnp.allclose(y, expected, atol=1e-6))
      True

    Reference: Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference (section 3.2), arXiv:1712.05877.
    """
    program, args = take_model("fold", model, args, call, rngs)
    pairs, kept = find_pairs(program, args)
    if not pairs and not kept:
        raise ValueError(
            f"{program.label} calls no batch norm of jaxnorm or flax, so that there is nothing to "
            "fold."
        )
    if isinstance(program, LinenProgram):
        _fold_linen(program, pairs)
    else:
        _fold_nnx(program, pairs)
    return Folded(program, pairs, kept)


def _folded(pair: Pair, kernel: Any, bias: Any, moments: list[Any], affine: list[Any]) -> Any:
    def fold_one(kernel, bias, mean, var, gamma, beta):
        moments = Moments(mean, var, var)
        options = {"epsilon": pair.norm.epsilon, "feature_axis": pair.layer.feature_axis}
        return fold_kernel(kernel, bias, moments, gamma, beta, **options)

    for _ in range(kernel.ndim - pair.layer.ranks["kernel"]):
        fold_one = jax.vmap(fold_one)
    return fold_one(kernel, bias, *moments, *affine)


def _fold_linen(program: LinenProgram, pairs: list[Pair]) -> None:
    state = {name: unfreeze(collection) for name, collection in program.state.items()}
    flat = traverse_util.flatten_dict(state)
    for pair in pairs:

        def take(name: str, path: Any = pair.norm.path) -> Any:
            stored = flat.pop(program.leaf_path(path, name), None)
            return None if stored is None else unbox(stored)

        place, beside = (program.leaf_path(pair.layer.path, n) for n in ("kernel", "bias"))
        moments, affine = ([take(n) for n in names] for names in (STATISTICS, pair.norm.names))
        take("count")
        boxed = flat.get(beside)
        given = unbox(flat[place]), None if boxed is None else unbox(boxed)
        kernel, bias = _folded(pair, *given, moments, affine)
        flat[place] = rebox(flat[place], kernel)
        flat[beside] = bias if boxed is None else rebox(boxed, bias)
    program.state = traverse_util.unflatten_dict(flat)


def _fold_nnx(program: Any, pairs: list[Pair]) -> None:
    model = nnx.merge(program.graph, program.state, copy=True)
    modules: dict[Any, Any] = {
        tuple(map(str, path)): module for path, module in nnx.iter_modules(model)
    }
    for pair in pairs:
        layer, norm = modules[pair.layer.path], modules[pair.norm.path]

        def value(name: str, module: Any = norm) -> Any:
            variable = getattr(module, name, None)
            return variable[...] if isinstance(variable, nnx.Variable) else None

        moments, affine = ([value(n) for n in names] for names in (STATISTICS, pair.norm.names))
        kernel, bias = _folded(pair, value("kernel", layer), value("bias", layer), moments, affine)
        layer.kernel.set_value(kernel)
        if layer.bias is None:
            layer.bias = nnx.Param(bias)
        else:
            layer.bias.set_value(bias)
        for name, variable in list(vars(norm).items()):
            if isinstance(variable, nnx.Variable):
                delattr(norm, name)
    program.graph, program.state = nnx.split(model)
