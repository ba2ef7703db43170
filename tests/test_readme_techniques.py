"""The README's table of techniques: sorted, complete, and every expression in it runs."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxnorm
import jaxnorm.linen
from jaxnorm import tools
from tests.contract import registry
from tests.test_readme import TABLE

pytestmark = pytest.mark.quickly_compiled

ROWS = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in TABLE]
HEADER, TECHNIQUES = ROWS[0], ROWS[2:]

# What the expressions are about: images, of which each belongs to one of two kinds.
SHAPE = (8, 4, 4, 6)
ARRAYS = {
    "x": SHAPE,
    "gamma": (6,),
    "beta": (6,),
    "gamma_of_each": (8, 1, 1, 6),
    "beta_of_each": (8, 1, 1, 6),
    "w": (5, 6),
    "g": (6,),
    "u": (6,),
    "v": (6,),
    "rho": (6,),
    "tau": (6,),
    "weights": (3,),
    "gate": SHAPE,
    "style": SHAPE,
}
OTHERS = {
    "axis": (0, 1, 2),
    "ids": jnp.arange(8) % 2,
    "nodes_of_each": jnp.full((8, 1, 1, 1), 4.0),
    "running": jaxnorm.init_running(6),
    "layer": nn.Dense(3),
    "tools": tools,
    "jax": jax,
    "jnp": jnp,
    "f": jnp.tanh,
}
# Of papers that are not on arXiv: where they appeared.
VENUES = r"(arXiv:\d{4}\.\d{5}|(NeurIPS|ICLR|ICCV|Stanford) \d{4})$"


def code_in(cell):
    """The expressions of a cell: names, calls, or the arguments that a call takes."""
    return re.findall(r"`([^`]+)`", cell)


def test_it_has_these_columns():
    assert HEADER == ["technique", "function or expression", "module", "pools", "formula", "paper"]
    assert all(len(row) == len(HEADER) and all(row) for row in TECHNIQUES)
    for *_, cell, _ in TECHNIQUES:
        (formula,) = code_in(cell)  # in one piece, so that Markdown reads nothing into it
        assert formula.count("(") == formula.count(")")


def test_a_technique_is_found_by_its_name():
    names = [row[0].lower() for row in TECHNIQUES]
    assert names == sorted(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("row", TECHNIQUES, ids=lambda row: row[0])
def test_a_row_runs(row):
    _, functions, modules, _, _, paper = row
    assert code_in(functions + modules)
    assert re.search(VENUES, paper) or row[0] == "statistics penalty"
    for code in code_in(functions):
        # Names of mapped axes are bound by a `vmap` of one.
        def run(arrays, code=code):
            return eval(code, {**vars(jaxnorm), **OTHERS, **arrays})

        if "(" not in code:
            assert callable(run({}))
            continue
        arrays = {name: jnp.ones((1, *shape)) for name, shape in ARRAYS.items()}
        result = jax.eval_shape(jax.vmap(run, axis_name="d"), arrays)
        shapes = {leaf.shape[1:] for leaf in jax.tree.leaves(result)}
        assert shapes & {SHAPE, ARRAYS["w"]} or row[0] == "statistics penalty"
    for code in code_in(modules):
        if code not in ("gamma=", "beta="):
            assert isinstance(eval(code, {**vars(jaxnorm.linen), **OTHERS}), nn.Module)


def test_no_normalization_is_missing():
    """Every public function that normalizes, and every module."""
    functions = " ".join(row[1] for row in TECHNIQUES)
    steps = {"decorrelate"}  # It applies what another found.
    for name in set(jaxnorm.__all__) - set(registry.OTHERS) - steps:
        assert f"`{name}(" in functions, name
    modules = " ".join(row[2] for row in TECHNIQUES)
    for name, module in vars(jaxnorm.linen).items():
        if isinstance(module, type):
            assert f"`{name}(" in modules, name
