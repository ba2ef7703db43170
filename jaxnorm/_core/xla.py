"""What the core relies on in compilers, or works around: one row each, with the test of it."""

from __future__ import annotations

from typing import NamedTuple

import jaxlib.version

# Before, what is added up is written in float32 first, whatever stands between; a pass costs two.
SUMS_COPY = jaxlib.version.__version_info__ < (0, 10, 2)


class Behaviour(NamedTuple):
    """Something that XLA does.

    Attributes:
      backend: whose compiler.
      what: it does.
      so: what the core does about it.
      seen: the version of jaxlib that it was last seen with.
      test: fails when it changes, or when the core no longer minds it.
    """

    backend: str
    what: str
    so: str
    seen: str
    test: str


BEHAVIOURS = (
    Behaviour(
        "CPU",
        "sums, also of x - mean and of its square, go to a library of vectorized reductions, in "
        "which each operation on the way costs nearly as much as the sum",
        "nothing is multiplied inside sums",
        "0.12.0",
        "core.test_xla.test_sums_go_to_the_library",
    ),
    Behaviour(
        "CPU",
        "a norm of 4,096 rows or more becomes one kernel, unless it selects, clamps or rounds",
        "Plan.row_kernel, _core/rows.py",
        "0.12.0",
        "core.test_xla.test_rows_become_one_kernel",
    ),
    Behaviour(
        "CPU",
        "maximum and minimum lose a NaN in that library",
        "no row is clamped",
        "0.12.0",
        "core.test_xla.test_a_nan_stays",
    ),
    Behaviour(
        "CPU",
        "a value that two loops use is computed once, in memory, bfloat16 input as float32",
        'Plan.barrier = "arrays"',
        "0.12.0",
        "core.test_xla.test_no_copy_of_the_input",
    ),
    Behaviour(
        "CPU",
        "before 0.10.2 what is added up is written in float32 first",
        "SUMS_COPY: sums about a value at hand, which take one pass of ordinary data",
        "0.10.0",
        "core.test_xla.test_no_copy_of_the_input",
    ),
    Behaviour(
        "CPU",
        "sums outside the library add up several axes in one sequence",
        'Plan.reduction = "axes"',
        "0.12.0",
        "core.test_plans.test_small_pools_of_several_axes",
    ),
    Behaviour(
        "CPU",
        "a division by a known number is a product with its reciprocal, which can be contracted "
        "into a subtraction in one place and not in another",
        "reduce_precision in `bounded`, a barrier around the divisor in _core/rows.py",
        "0.12.0",
        "contract.test_exact.test_exact_when_fused_with_neighbours",
    ),
    Behaviour(
        "TPU",
        "sums of x and of its square are added up in the epilogue of what makes x",
        'Plan.algorithm = "shifted"',
        "0.12.0",
        "test_tpu.test_training_steps_compile",
    ),
    Behaviour(
        "TPU",
        "the compiler dies of conditionals around statistics whose first branch does not return "
        "its operand as it is",
        "the form of the conditional in `shifted`",
        "0.12.0",
        "test_tpu.test_training_steps_compile",
    ),
    Behaviour(
        "GPU",
        "sums of 100,000 equal numbers are off by 100 eps",
        "SUM_ERRORS",
        "0.11.2",
        "core.test_statistics.test_constants_stay_constant_where_sums_are_rough",
    ),
    Behaviour(
        "GPU",
        "few long columns get few threads, and x - mean is written in float32 before its sum",
        'Plan.reduction = "blocks"',
        "0.12.0",
        "core.test_plans.test_sums_of_columns_in_blocks",
    ),
    Behaviour(
        "GPU",
        "rows and their use are one kernel, unless x - mean depends on a comparison or a barrier",
        'Plan.row_kernel = "rounded"',
        "0.12.0",
        "core.test_plans.test_rows_on_gpu_depend_on_no_comparison",
    ),
    Behaviour(
        "all",
        "a cast to a narrower type and back is removed",
        "reduce_precision in apply_affine",
        "0.12.0",
        "functional.test_functional.test_llama_and_gemma_bit_for_bit",
    ),
)
