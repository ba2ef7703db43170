"""Programs of a test planned as another platform plans them, and their passes counted."""

import contextlib

import jax

from jaxnorm._core import primitive, statistics
from jaxnorm._core.plan import plan_for

# The platform, and whether the program is for one device. The CPU's own plan for one device is what
# all other tests run.
PLANS = {
    "tpu": ("tpu", True),
    "gpu": ("gpu", True),
    "tpus": ("tpu", False),
    "gpus": ("gpu", False),
    "cpus": ("cpu", False),
}


def plan_of(name):
    """Returns a platform's plan but for one choice: XLA on CPU does not add up in trees."""
    platform, one_device = PLANS[name]
    return plan_for(platform, one_device)._replace(reduction="axes")


@contextlib.contextmanager
def planned_as(plan):
    """Plans all programs within it so; what was compiled before, or is inside, does not count."""
    asked = []

    def always(platform, one_device):
        asked.append((platform, one_device))
        return plan

    usual = primitive.plan_for
    jax.clear_caches()
    primitive.plan_for = always
    try:
        yield
    finally:
        primitive.plan_for = usual
        jax.clear_caches()
    assert asked


@contextlib.contextmanager
def counted_passes():
    """Counts how often sums about a value are taken, as programs traced within it run.

    Returns a function that returns the count since the last call of it.
    """
    taken = []
    usual = statistics.shifted_sums

    def shifted_sums(*given, **options):
        jax.debug.callback(lambda: taken.append(None))
        return usual(*given, **options)

    def count():
        jax.effects_barrier()
        number = len(taken)
        taken.clear()
        return number

    jax.clear_caches()
    statistics.shifted_sums = shifted_sums
    try:
        yield count
    finally:
        statistics.shifted_sums = usual
        jax.clear_caches()
