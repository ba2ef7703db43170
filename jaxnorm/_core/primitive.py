"""A JAX primitive made of a function with its own derivative rules, lowered per platform.

`jax.custom_vjp` loses forward mode and second order, `jax.custom_jvp` cannot say how its tangent
is transposed, and neither can choose by platform. A primitive does all three; the derivatives
of its derivatives are those of the plain function.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxnorm._core.plan import CPU_ONE_LOOP, PLAIN, PORTABLE, Plan, cpu_plan, gpu_plan

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
      renumber: (params, number) -> params for operands whose axis a becomes the axes number(a).
      role: (params, axis) -> what the function does with an axis. Neighbouring axes of one role
        can be taken as one, and one axis as several; an axis whose role is None stays.
      sums: params -> the axes of each sum that is taken over all of them, which may become
        several; those along which elements share their statistics are first.
      main: the operands, by position, that carry a batch axis in full; the others may have size 1.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., tuple[Optional, ...]],
        shapes: Callable[..., tuple[Shape | None, ...]],
        renumber: Callable[[dict[str, Any], Callable[[int], Sequence[int]]], dict[str, Any]],
        role: Callable[[dict[str, Any], int], Any],
        sums: Callable[[dict[str, Any]], Sequence[Sequence[int]]],
        main: Sequence[int],
    ):
        self.function, self.shapes = function, shapes
        self.renumber, self.role, self.sums = renumber, role, sums
        self.main = main
        self.primitive = Primitive(name)
        self.primitive.multiple_results = True
        self.primitive.def_impl(self._evaluate)
        self.primitive.def_abstract_eval(self._abstract)
        batching.primitive_batchers[self.primitive] = self._batch
        ad.primitive_jvps[self.primitive] = self._differentiate_function
        mlir.register_lowering(self.primitive, functools.partial(self._lower, None))
        for platform in ("cpu", "gpu"):
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

    def _call(self, plan: Plan, *operands, present, **params):
        operands = _restore(operands, present)
        shapes = [s.shape for s in self.shapes(*operands, **params) if s is not None]
        if plan.one_device and (plan.separate or plan.short_axes):
            operands, params = self._lay_out(operands, params, plan)
            operands = plan.next_pass(*operands)
        results = self.function(*operands, plan=plan, **params)
        results = [r for r in results if r is not None]
        return [r.reshape(s) for r, s in zip(results, shapes, strict=True)]

    def _lay_out(self, operands, params, plan: Plan):
        """Returns the same computation over the axes that XLA on CPU is fastest over.

        They are few for a large input, and short where a small one is summed.
        """
        given = [x.shape for x in operands if x is not None]
        full = [max(sizes) for sizes in zip(*given, strict=True)]
        if plan.separate:
            parts: list[tuple[int, ...]] = [(size,) for size in full]
            numbers = self._merged(given, full, params)
        else:
            movable = [axis for axis in range(len(full)) if self.role(params, axis) is not None]
            parts = _cut_short(full, self.sums(params), movable)
            ends = list(itertools.accumulate(map(len, parts)))
            numbers = [range(end - len(p), end) for end, p in zip(ends, parts, strict=True)]

        def reshape(x):
            if x is None:
                return None
            sizes = [1] * (numbers[-1][-1] + 1)
            for axis, size in enumerate(x.shape):
                if len(parts[axis]) == 1:
                    sizes[numbers[axis][0]] *= size
                elif size != 1:
                    for number, part in zip(numbers[axis], parts[axis], strict=True):
                        sizes[number] = part
            return x.reshape(sizes)

        return [reshape(x) for x in operands], self.renumber(params, numbers.__getitem__)

    def _merged(self, given, full, params) -> list[Sequence[int]]:
        """Returns each axis' number if neighbours of one role are taken as one."""

        def alike(a: int, b: int) -> bool:
            role = self.role(params, a)
            if role is None or role != self.role(params, b):
                return False
            pairs = {(s[a] == full[a], s[b] == full[b]) for s in given}
            return 1 in (full[a], full[b]) or pairs <= {(True, True), (False, False)}

        numbers, number, last = [], -1, None
        for axis, size in enumerate(full):
            # One of size 1 joins any of its role; what follows has to be like the one before it.
            if last is None or not alike(last, axis):
                number, last = number + 1, axis
            elif full[last] == 1 or size != 1:
                last = axis
            numbers.append((number,))
        return numbers

    def _lower(self, platform: str | None, context, *operands, **params):
        # Only where the program is for one device can no operand lie on several.
        devices = getattr(context.module_context.axis_context, "num_devices", None)
        pooled, *_ = self.sums(params)
        given = context.avals_in[0], pooled, devices == 1
        if platform == "cpu":
            plan = cpu_plan(*given)
        else:
            plan = gpu_plan(*given) if platform == "gpu" else PLAIN
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
        main = [i for i in self.main if present[i]][:1]
        flat = {i: n for n, i in enumerate(i for i, p in enumerate(present) if p)}
        position = next((dims[flat[i]] for i in main if dims[flat[i]] is not None), 0)

        def move(x, dim, full):
            if dim is not None:
                return jnp.moveaxis(x, dim, position)
            x = jnp.expand_dims(x, position)
            if not full:
                return x
            return jnp.broadcast_to(x, (*x.shape[:position], size, *x.shape[position + 1 :]))

        full = {flat[i] for i in main}
        moved = [move(x, d, n in full) for n, (x, d) in enumerate(zip(operands, dims, strict=True))]
        params = self.renumber(params, lambda a: (a + (a >= position),))
        results = self.primitive.bind(*moved, present=present, **params)
        return results, [position] * len(results)


# Sums over more elements are not cut into two factors that are short enough.
_SHORT = CPU_ONE_LOOP**2


def _cut_short(
    sizes: Sequence[int], sums: Sequence[Sequence[int]], movable: Sequence[int]
) -> list[tuple[int, ...]]:
    """Returns factors of the sizes, so that short sums over movable axes are one loop each.

    Over the first factor slices are added up; see `jaxnorm._core.pool.sum_axes`.
    """

    def is_short(axis: int) -> bool:
        over = [axes for axes in sums if axis in axes]
        return bool(over) and all(math.prod(sizes[a] for a in axes) <= _SHORT for axes in over)

    return [
        _cut(size) if axis in movable and is_short(axis) else (size,)
        for axis, size in enumerate(sizes)
    ]


def _cut(size: int) -> tuple[int, ...]:
    """Returns two factors that are summed over in one loop, if there are such factors."""
    if size > CPU_ONE_LOOP:
        for factor in range(CPU_ONE_LOOP, 1, -1):
            if size % factor == 0 and size // factor <= CPU_ONE_LOOP:
                return size // factor, factor
    return (size,)


def _restore(values: Sequence[Any], present: Sequence[bool]) -> tuple[Optional, ...]:
    """Puts None where an operand is not present."""
    given = iter(values)
    return tuple(next(given) if p else None for p in present)


@functools.cache
def _jitted(operation: Operation, params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    return jax.jit(functools.partial(operation.bind_flat, dict(params)))
