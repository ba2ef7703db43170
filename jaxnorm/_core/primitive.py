"""A JAX primitive made of a function with its own derivative rules, lowered per platform.

`jax.custom_vjp` loses forward mode and second order, `jax.custom_jvp` cannot say how its tangent
is transposed, and neither can choose by platform. A primitive does all three; the derivatives
of its derivatives are those of the plain function.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxnorm._core.merged_axes import find_runs, merge
from jaxnorm._core.mesh import left_to_compiler
from jaxnorm._core.plan import PORTABLE, plan_for

Optional = Any  # an array or None


class Shape(NamedTuple):
    """Shape and dtype of a result."""

    shape: tuple[int, ...]
    dtype: jnp.dtype


class Operation:
    """A primitive whose operands and results are arrays of one rank, or None.

    Args:
      name: the primitive's name.
      function: called as function(*operands, plan=..., **params); returns a tuple.
      shapes: called as shapes(*operands, **params); returns a `Shape` or None for each result.
      renumber: (params, number) -> params for operands whose axis a becomes the axis number(a).
      main: the operands, by position, that carry a batch axis in full; the others may have size 1.
      kinds: called as kinds(rank, **params); returns for each axis what tells it from others.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., tuple[Optional, ...]],
        shapes: Callable[..., tuple[Shape | None, ...]],
        renumber: Callable[[dict[str, Any], Callable[[int], int]], dict[str, Any]],
        batched_operand: Sequence[int],
        kinds: Callable[..., Sequence[Any]],
    ):
        self.function, self.shapes = function, shapes
        self.renumber, self.batched_operand, self.kinds = renumber, batched_operand, kinds
        self.primitive = Primitive(name)
        self.primitive.multiple_results = True
        self.primitive.def_impl(self._evaluate)
        self.primitive.def_abstract_eval(self._abstract)
        batching.primitive_batchers[self.primitive] = self._batch
        ad.primitive_jvps[self.primitive] = self._differentiate_function
        mlir.register_lowering(self.primitive, functools.partial(self._lower, None))
        for platform in ("cpu", "gpu", "tpu"):
            rule = functools.partial(self._lower, platform)
            mlir.register_lowering(self.primitive, rule, platform=platform)

    def __call__(self, *operands: Optional, **params: Any) -> tuple[Optional, ...]:
        present = tuple(x is not None for x in operands)
        given = [x for x in operands if x is not None]
        results = iter(self.primitive.bind(*given, present=present, **params))
        shapes = self.shapes(*operands, **params)
        return tuple(None if s is None else next(results) for s in shapes)

    def def_jvp(self, rule: Callable[..., tuple[Any, Any]]) -> None:
        """Sets the derivative: rule(operands, tangents, **params) -> results, tangents."""

        def jvp(primals, tangents, *, present, **params):
            operands = _restore(primals, present)
            given = [None if isinstance(t, ad.Zero) else t for t in tangents]
            results, dresults = rule(operands, _restore(given, present), **params)
            results, dresults = zip(
                *((r, d) for r, d in zip(results, dresults, strict=True) if r is not None),
                strict=True,
            )
            return results, tuple(
                ad.Zero(jax.typeof(r).to_tangent_aval()) if d is None else d
                for r, d in zip(results, dresults, strict=True)
            )

        ad.primitive_jvps[self.primitive] = jvp

    def def_transpose(self, rule: Callable[..., tuple[Any, ...]]) -> None:
        """Sets the transpose: rule(cotangents, operands, **params) -> cotangents of operands.

        An operand that is linear is an `ad.UndefinedPrimal`, with an `aval`.
        """

        def transpose(cotangents, *operands, present, **params):
            operands = _restore(operands, present)
            avals = [x.aval if ad.is_undefined_primal(x) else x for x in operands]
            given = iter([None if isinstance(c, ad.Zero) else c for c in cotangents])
            shapes = self.shapes(*avals, **params)
            full = [None if s is None else next(given) for s in shapes]
            results = rule(full, operands, **params)
            return [r for r, p in zip(results, present, strict=True) if p]

        ad.primitive_transposes[self.primitive] = transpose

    def _call(self, plan, *operands, present, **params):
        operands = [left_to_compiler(x) for x in operands]
        shapes = self._abstract(*operands, present=present, **params)
        if plan.merges_axes:
            rank = operands[0].ndim
            runs = find_runs([x.shape for x in operands], self.kinds(rank, **params))
            operands = [merge(x, runs) for x in operands]
            params = self.renumber(
                params, {a: n for n, r in enumerate(runs) for a in r}.__getitem__
            )
        results = self.function(*_restore(operands, present), plan=plan, **params)
        results = [r for r in results if r is not None]
        return [r.reshape(s.shape) for r, s in zip(results, shapes, strict=True)]

    def _lower(self, platform: str | None, context, *operands, **params):
        # Only where the program is for one device can no operand lie on several.
        devices = getattr(context.module_context.axis_context, "num_devices", None)
        plan = plan_for(platform, one_device=devices == 1)
        rule = mlir.lower_fun(functools.partial(self._call, plan), multiple_results=True)
        return rule(context, *operands, **params)

    def _evaluate(self, *operands, **params):
        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
            return self._call(PORTABLE, *operands, **params)
        return _jitted(self, tuple(sorted(params.items())))(*operands)

    def bind_flat(self, params, *operands):
        return self.primitive.bind(*operands, **params)

    def _abstract(self, *operands, present, **params):
        shapes = self.shapes(*_restore(operands, present), **params)
        return [ShapedArray(s.shape, s.dtype) for s in shapes if s is not None]

    def _differentiate_function(self, primals, tangents, **params):
        tangents = tuple(ad.instantiate_zeros(t) for t in tangents)
        plain = functools.partial(self._call, PORTABLE, **params)
        return jax.jvp(plain, tuple(primals), tangents)

    def _batch(self, operands, dims, *, present, **params):
        sizes = {x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None}
        (size,) = sizes
        batched_operand = [i for i in self.batched_operand if present[i]][:1]
        flat = {i: n for n, i in enumerate(i for i, p in enumerate(present) if p)}
        position = next((dims[flat[i]] for i in batched_operand if dims[flat[i]] is not None), 0)

        def move(x, dim, full):
            if dim is not None:
                return jnp.moveaxis(x, dim, position)
            x = jnp.expand_dims(x, position)
            if not full:
                return x
            return jnp.broadcast_to(x, (*x.shape[:position], size, *x.shape[position + 1 :]))

        full = {flat[i] for i in batched_operand}
        moved = [move(x, d, n in full) for n, (x, d) in enumerate(zip(operands, dims, strict=True))]
        params = self.renumber(params, lambda axis: axis + (axis >= position))
        results = self.primitive.bind(*moved, present=present, **params)
        return results, [position] * len(results)


def _restore(values: Sequence[Any], present: Sequence[bool]) -> tuple[Optional, ...]:
    """Puts None where an operand is not present."""
    given = iter(values)
    return tuple(next(given) if p else None for p in present)


@functools.cache
def _jitted(operation: Operation, params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    return jax.jit(functools.partial(operation.bind_flat, dict(params)))
