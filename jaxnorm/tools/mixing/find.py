"""Which layers of a model let one example reach another."""

from __future__ import annotations

from typing import Any, overload

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxnorm._core.plain import plain
from jaxnorm.tools.mixing.follow import TAG, Follower
from jaxnorm.tools.mixing.labels import Labels, no_labels
from jaxnorm.tools.models.programs import Call, take_model


@overload
def find_mixing(
    model: nn.Module,
    variables: Any,
    x: Any,
    *,
    call: Call | None = ...,
    rngs: Any = ...,
) -> list[str]: ...
@overload
def find_mixing(model: nnx.Module, x: Any, /, *, call: Call | None = ...) -> list[str]: ...
def find_mixing(
    model: Any,
    variables: Any = None,
    x: Any = None,
    *more: Any,
    call: Call | None = None,
    rngs: Any = None,
) -> list[str]:
    """Finds the layers of a model through which an example's output depends on other examples.

    Where there is none, the Jacobian of the outputs with respect to the inputs is zero between
    different examples, whatever the parameters: gradients can be clipped per example (DP-SGD), and
    what is served does not depend on what else is in the batch: jaxnorm's norms of single examples
    to the bit, for batches of one size, in one program on one kind of chip. It is read from the
    operations of the model's program, each of which is followed by which example its elements
    depend on; numbers play no part. What is not known is taken to mix: an index that data decide,
    an operation that is not JAX's own, a loop whose end data decide.

    What to take instead of batch norm: `GroupNorm`, which sees one example at a time, with groups
    of 8 channels or more, since behind a dense layer nothing is left of one channel, and of two but
    which of them is larger: for C channels
    `max(n for n in range(1, 33) if C % n == 0 and n <= max(1, C // 8))` groups; `RMSNorm` or
    `LayerNorm` over the channels; or batch norm that rests (`jaxnorm.tools.freeze`).

    Args:
      model: a linen module; or an NNX model, in the mode that it is in.
      variables: of a linen module; not given for an NNX model.
      x: an array of at least two examples along axis 0, or a tree of such arrays. Only shapes and
        dtypes matter.
      call: (model, x) -> output: calls the bound model, in training or evaluation as you ask.
        Default: `model(x)`. A model that evaluates where `batch_stats` are not mutable evaluates;
        its training is `model.unbind()` and `apply` with them mutable.
      rngs: passed to `apply` of a linen module.

    Returns:
      The paths of the layers, in the order that they run; of each the innermost module that mixes
      by itself. "" is the model's own code. Empty if no example reaches another.

    Raises:
      ValueError: x holds less than two examples, or variables are those of another model.
      TypeError: it is no model of flax, has no variables, or cannot be called with x.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
      >>> from jaxnorm import tools
      >>> x = jnp.ones((4, 8))
      >>> for norm in jnn.BatchNorm(use_running_average=False), jnn.GroupNorm(num_groups=4):
      ...     model = nn.Sequential([nn.Dense(8), norm, nn.relu])
      ...     tools.find_mixing(model, model.init(jax.random.key(0), x), x)
      ['layers_1']
      []

    References: Abadi et al. 2016, Deep Learning with Differential Privacy, arXiv:1607.00133; De et
    al. 2022, Unlocking High-Accuracy Differentially Private Image Classification through Scale
    (group norm instead of batch norm), arXiv:2204.13650.
    """
    given = (*(value for value in (variables, x) if value is not None), *more)
    program, rest = take_model("find_mixing", model, given, call, rngs, evaluate=False)
    if len(rest) != 1:
        raise TypeError(
            f"find_mixing takes one x after the model"
            f"{'' if isinstance(model, nnx.Module) else ' and its variables'}, got {len(rest)} "
            "more arguments; what else the model is called with is said by call=lambda net, x: "
            "net(x, train=True)."
        )
    (x,) = rest
    arrays = [leaf for leaf in jax.tree.leaves(x) if hasattr(leaf, "dtype")]
    sizes = {leaf.shape[0] if leaf.shape else 0 for leaf in arrays}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(
            "x must hold arrays of two examples or more along axis 0, the same number in all, got "
            f"shapes {[leaf.shape for leaf in arrays]}."
        )
    paths: list[str] = []

    def look(visit, run, args, kwargs):
        number = len(paths)
        paths.append(visit.name)
        # What is computed in a module, but not in those that it calls, has its number last.
        with jax.named_scope(f"{TAG}{number}"):
            one = args[:1] if args and hasattr(args[0], "shape") else ()
            args = (*(checkpoint_name(a, f"{TAG}{number} in") for a in one), *args[len(one) :])
            y = run(*args, **kwargs)
            alike = one and getattr(y, "shape", None) == one[0].shape
        return checkpoint_name(y, f"{TAG}{number} out") if alike else y

    with plain():
        closed = program.trace(look, rest)
    states = [no_labels(leaf) for leaf in jax.tree.leaves(program.state)]
    search = Follower()
    unknown = [None] * (len(states) + len(arrays))
    results, _ = search.run(closed, [*states, *map(_number_examples, arrays)], unknown)
    (size,) = sizes
    for result in results:
        # Examples that only change places reach each other as well.
        if result.ndim and len(result) == size:
            if ((result > 0) & (result != _number_examples(result))).any():
                search.blamed.add(-1)
    return list(dict.fromkeys(paths[n] if n >= 0 else "" for n in sorted(search.blamed)))


def _number_examples(leaf: Any) -> Labels:
    numbers = np.arange(1, leaf.shape[0] + 1, dtype=np.int32)
    return np.broadcast_to(numbers.reshape(-1, *(1,) * (len(leaf.shape) - 1)), leaf.shape)
