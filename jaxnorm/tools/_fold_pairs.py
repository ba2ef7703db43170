"""Which batch norms of a model can become part of the linear layer before them, and why not."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxnorm._core import axes as _axes
from jaxnorm._layers.batch import BatchLayer
from jaxnorm._layers.layer import Context
from jaxnorm.tools._dataflow import RESHAPED, SAME, Flow, Step
from jaxnorm.tools._norms import BATCH, OWN_BATCH, PLAIN_BATCH, affine_names, arguments, is_plain
from jaxnorm.tools._programs import Path, Visit

LAYERS = (
    *(nn.Dense, nn.Conv, nn.ConvTranspose),
    *(nnx.Linear, nnx.Conv, nnx.ConvTranspose),
)
LAYER_VALUES = ("kernel", "bias")
STATISTICS = ("mean", "var")
_TAG = "jaxnorm fold "
_PRODUCTS = ("dot_general", "conv_general_dilated")


class LayerCall(NamedTuple):
    """A call of a linear layer.

    Attributes:
      path: of the layer.
      feature_axis: of its kernel.
      ranks: of its parameters in the call, by name; outside they may be stacked.
    """

    path: Path
    feature_axis: int
    ranks: dict[str, int]


class NormCall(NamedTuple):
    """A call of a batch norm.

    Attributes:
      path: of the norm.
      reason: why it cannot be folded, whatever is before it.
      epsilon: of the norm.
      names: of gamma and beta.
      dtype: of its result; None if that is its input's.
      ranks: of its parameters and statistics in the call, by name.
    """

    path: Path
    reason: str
    epsilon: float
    names: tuple[str, ...]
    dtype: Any
    ranks: dict[str, int]


class Pair(NamedTuple):
    """A layer and the batch norm that becomes part of it."""

    layer: LayerCall
    norm: NormCall


def find_pairs(program: Any, args: tuple) -> tuple[list[Pair], list[tuple[Path, str]]]:
    """Returns the pairs to fold, and the path of each batch norm that stays, with the reason."""
    calls: list[LayerCall | NormCall] = []
    foreign: dict[Path, str] = {}

    def look(visit, run, args, kwargs):
        module, number = visit.module, len(calls)
        if isinstance(module, BATCH) and not is_plain(module, PLAIN_BATCH):
            foreign[visit.path] = f"its class {type(module).__name__} computes in a way of its own"
        if visit.path in foreign:
            return run(*args, **kwargs)
        if isinstance(module, LAYERS) and is_plain(module, LAYERS):
            axis = -2 if getattr(module, "transpose_kernel", False) else -1
            calls.append(LayerCall(visit.path, axis, _tag_values(visit, number, LAYER_VALUES)))
            return _tag(run(*args, **kwargs), number, "out")
        if not isinstance(module, BATCH):
            return run(*args, **kwargs)
        given, names = arguments(module, args, kwargs), affine_names(module)
        own = isinstance(module, OWN_BATCH)
        if visit.value("mean") is None:
            raise ValueError(
                f"fold: variables hold no running mean for {_name(visit.path)}; give the "
                "collection batch_stats too, as it was trained."
            )
        extras = [n for n in ("mask", "domain", "gamma", "beta") if given.get(n) is not None]
        reason = _why_not_own(visit, given) if own else _why_not_flax(visit, given)
        reason = f"the call gives it {extras[0]}" if extras and not reason else reason
        ranks = _tag_values(visit, number, (*STATISTICS, *names))
        calls.append(NormCall(visit.path, reason, module.epsilon, names, None, ranks))
        x = _tag(jnp.asarray(given["x"]), number, "in")
        y = run(x, *args[1:], **{k: v for k, v in kwargs.items() if k != "x"})
        if y.dtype != x.dtype:
            calls[number] = calls[number]._replace(dtype=y.dtype)
        return _tag(y, number, "out")

    flow = Flow.of(program.trace(look, args))
    pairs, kept = _Search(program, flow, calls).result()
    return pairs, [*kept, *foreign.items()]


def _tag(value: Any, number: int, end: str) -> Any:
    return checkpoint_name(value, f"{_TAG}{number} {end}")


def _tag_values(visit: Visit, number: int, names: tuple[str, ...]) -> dict[str, int]:
    """Tags the parameters of a call, and returns their ranks."""
    ranks = {}
    for name in names:
        value = visit.value(name)
        if value is not None:
            # Where vmap has stacked it along another axis than the first, this transposes.
            _tag(jnp.concatenate([value, value], -1), number, name)
            ranks[name] = value.ndim
    return ranks


_TRAINS = (
    "it normalizes by the batch's statistics, or updates the running ones; call the model for "
    "evaluation"
)
_AXES = "its statistics are not of the last axis alone"


def _why_not_own(visit: Visit, given: dict[str, Any]) -> str:
    layer, shape = BatchLayer.of(visit.module), jnp.shape(given["x"])
    decisions = layer.decide(
        given["use_running_average"], given["update_running"], Context(visit.name)
    )
    if decisions.sources != ("running",) or decisions.update is not False:
        return _TRAINS
    pooled, features = layer.axes_of(shape)
    last = len(shape) - 1
    fits = features == (last,) and len(pooled) == last and layer.num_domains is None
    return "" if fits else _AXES


def _why_not_flax(visit: Visit, given: dict[str, Any]) -> str:
    module, shape = visit.module, jnp.shape(given["x"])
    evaluates = given["use_running_average"]
    if evaluates is None:
        evaluates = module.use_running_average
    if evaluates is not True:
        return _TRAINS
    features = _axes.canonical_axes(module.axis, shape, "axis")
    return "" if features == (len(shape) - 1,) else _AXES


class _Search:
    """Where the tags of the calls have gone in a program."""

    def __init__(self, program: Any, flow: Flow, calls: list[LayerCall | NormCall]):
        self.program, self.flow, self.calls = program, flow, calls
        self.tagged: dict[tuple[Path, str], list[Step]] = {}
        for step in flow.steps:
            call, end = self.tag(step)
            if call is not None:
                self.tagged.setdefault((call.path, end), []).append(step)
        paths = jax.tree_util.tree_leaves_with_path(program.state)
        self.leaves = {
            tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): (
                flow.inputs[i],
                leaf.shape,
            )
            for i, (path, leaf) in enumerate(paths)
        }

    def tag(self, step: Step | None) -> tuple[LayerCall | NormCall | None, str]:
        """Returns the call that a step is a tag of, and whether of what goes in or comes out."""
        name = step.params.get("name", "") if step is not None and step.name == "name" else ""
        if not str(name).startswith(_TAG):
            return None, ""
        number, end = name.removeprefix(_TAG).split()
        return self.calls[int(number)], end

    def leaf(self, path: Path, name: str) -> tuple[int | None, tuple[int, ...]]:
        """Returns a parameter of the program, also one in a box, and its shape."""
        place = self.program.leaf_path(path, name)
        return self.leaves.get(place) or self.leaves.get((*place, "value")) or (None, ())

    def result(self) -> tuple[list[Pair], list[tuple[Path, str]]]:
        pairs, kept = [], []
        norms = dict.fromkeys(path for path, end in self.tagged if end == "in")
        for path in norms:
            found = [self.judge(step) for step in self.tagged[path, "in"]]
            reasons = [reason for reason in found if isinstance(reason, str)]
            layers = {pair.layer.path for pair in found if isinstance(pair, Pair)}
            if reasons:
                kept.append((path, reasons[0]))
            elif len(layers) > 1:
                names = " and ".join(sorted(map(_name, layers)))
                kept.append((path, f"it is called behind several layers, {names}"))
            else:
                pairs.append(found[0])
        return pairs, kept

    def judge(self, step: Step) -> Pair | str:
        """Returns the pair that a call of a norm belongs to, or why there is none."""
        norm, _ = self.tag(step)
        assert isinstance(norm, NormCall)
        if norm.reason:
            return norm.reason
        value = step.inputs[0]
        while (maker := self.maker(value)) is not None and self.is_same(maker):
            value = maker.inputs[0]
        if maker is None:
            return "its input comes from outside of the model, or of a loop"
        call, _ = self.tag(maker)
        if isinstance(call, LayerCall):
            reason = self.why_not(call, norm)
            return reason or Pair(call, norm)
        before = _name(call.path) if call is not None else self.behind(maker)
        if call is not None:
            return f"its input comes from {before}, which is no Dense, Conv or ConvTranspose"
        return f"{maker.within or maker.name} lies between {before} and it"

    def why_not(self, layer: LayerCall, norm: NormCall) -> str:
        """Returns why a layer cannot take up a norm, if it cannot."""
        name = _name(layer.path)
        kernel, bias = (self.leaf(layer.path, each)[0] for each in LAYER_VALUES)
        known: list[Step | None] = []
        for step in self.tagged[layer.path, "out"]:
            product, added = self.product(step.inputs[0], bias if "bias" in layer.ranks else None)
            if product is None or self.flow.source(product.inputs[1], RESHAPED) != kernel:
                return (
                    f"{name} is no plain product with its kernel; weights that WeightNorm, "
                    "SpectralNorm or WeightStandardization compute have to be baked first "
                    "(jaxnorm.linen.bake, jaxnorm.nnx.bake)"
                )
            known += [product, added]
            for end in self.flow.ends(step.outputs[0], self.is_same):
                call, _ = self.tag(end)
                if call is None or call.path != norm.path:
                    return f"the output of {name} is also used elsewhere"
        for each in LAYER_VALUES:
            known += [self.maker(tag.inputs[0]) for tag in self.tagged.get((layer.path, each), ())]
        for value in (kernel, bias):
            ends = [] if value is None else self.flow.ends(value, lambda s: s.name in RESHAPED)
            if any(all(end is not one for one in known) for end in ends):
                return f"a parameter of {name} is also used elsewhere"
        return self.why_not_stacked(layer, norm)

    def why_not_stacked(self, layer: LayerCall, norm: NormCall) -> str:
        stacks = set()
        for call in (layer, norm):
            for name, rank in call.ranks.items():
                leaf, shape = self.leaf(call.path, name)
                stacks.add(len(shape) - rank)
                through = SAME | {"concatenate"}
                tags = self.tagged[call.path, name]
                if any(self.flow.source(tag.inputs[0], through) != leaf for tag in tags):
                    return (
                        f"{name} of {_name(call.path)} is stacked along another axis than the first"
                    )
        together = f"{_name(layer.path)} and it are not stacked alike by scan or vmap"
        return "" if len(stacks) == 1 else together

    def is_same(self, step: Step) -> bool:
        return step.name in SAME and self.tag(step)[0] is None

    def product(self, value: Any, bias: int | None) -> tuple[Step | None, Step | None]:
        """Returns the step that multiplies by the kernel, and the one that adds the bias."""
        step = self.maker(self.flow_back(value))
        added = None
        if bias is not None:
            if step is None or step.name != "add":
                return None, None
            sources = [self.flow.source(each, RESHAPED) for each in step.inputs]
            if bias not in sources:
                return None, None
            added, rest = step, step.inputs[1 - sources.index(bias)]
            step = self.maker(self.flow_back(rest))
        return (step if step is not None and step.name in _PRODUCTS else None), added

    def flow_back(self, value: Any) -> Any:
        while (step := self.maker(value)) is not None and step.name in RESHAPED:
            value = step.inputs[0]
        return value

    def maker(self, value: Any) -> Step | None:
        return None if value is None else self.flow.maker.get(value)

    def behind(self, step: Step) -> str:
        """Returns the name of the last layer or norm before a step."""
        waiting, seen = [step], set()
        while waiting:
            step = waiting.pop(0)
            call, end = self.tag(step)
            if end == "out" and call is not None:
                return _name(call.path)
            for value in step.inputs:
                maker = self.maker(value)
                if maker is not None and value not in seen:
                    seen.add(value)
                    waiting.append(maker)
        return "the model's input"


def _name(path: Path) -> str:
    return "/".join(path) or "the model"
