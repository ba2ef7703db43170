"""Where the calls of layers and norms stand in a program, and what lies between them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxnorm.tools.models.dataflow import LOOPS, RESHAPED, SAME, Flow, Step
from jaxnorm.tools.models.programs import Path, names_of

TAG = "jaxnorm fold "  # with the number of a call, and what of it
LAYER_VALUES = ("kernel", "bias")
_PRODUCTS = ("dot_general", "conv_general_dilated")


class LayerCall(NamedTuple):
    """A call of a linear layer.

    Attributes:
      path: of the layer.
      feature_axis: of its kernel.
      ranks: of its parameters in the call, by name; outside they may be stacked.
      is_circular: whether it is a transposed convolution that adds up what it makes, in circles.
    """

    path: Path
    feature_axis: int
    ranks: dict[str, int]
    is_circular: bool = False


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


class Search:
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
            names_of(path): (flow.inputs[i], leaf.shape) for i, (path, leaf) in enumerate(paths)
        }

    def tag(self, step: Step | None) -> tuple[LayerCall | NormCall | None, str]:
        """Returns the call that a step is a tag of, and whether of what goes in or comes out."""
        name = step.params.get("name", "") if step is not None and step.name == "name" else ""
        if not str(name).startswith(TAG):
            return None, ""
        number, end = name.removeprefix(TAG).split()
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
                names = " and ".join(sorted(map(label_of, layers)))
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
        if call is not None:
            name = label_of(call.path)
            return f"its input comes from {name}, which is no Dense, Conv or ConvTranspose"
        inner = [self.maker(self.flow_back(value)) for value in maker.inputs]
        if any(step is not None and step.name in _PRODUCTS for step in (maker, *inner)):
            return "its input is a product that is no Dense's, Conv's or ConvTranspose's"
        return f"{maker.within or maker.name} lies between {self.behind(maker)} and it"

    def why_not(self, layer: LayerCall, norm: NormCall) -> str:
        """Returns why a layer cannot take up a norm, if it cannot."""
        name = label_of(layer.path)
        kernel, bias = (self.leaf(layer.path, each)[0] for each in LAYER_VALUES)
        known: list[Step | None] = []
        for step in self.tagged[layer.path, "out"]:
            product, added = self.product(step.inputs[0], bias if "bias" in layer.ranks else None)
            if layer.is_circular:
                return f"{name} is a ConvTranspose with CIRCULAR padding, which adds its parts up"
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
        read = "its parameters or statistics are also used elsewhere"
        return self.why_not_stacked(layer, norm) or (read if self.is_read_elsewhere(norm) else "")

    def is_read_elsewhere(self, norm: NormCall) -> bool:
        """Whether what a norm has is read by other code than its own, where its calls stand."""
        flow, numbers = self.flow, {id(step): i for i, step in enumerate(self.flow.steps)}

        def places(end: str) -> list[int]:
            return [numbers[id(step)] for step in self.tagged[norm.path, end]]

        tags = [tag for name in norm.ranks for tag in self.tagged[norm.path, name]]
        known = {numbers[id(self.maker(tag.inputs[0]))] for tag in tags}
        calls = list(zip(places("in"), places("out"), strict=True))
        # What is made of them alone may have been taken out of the loop that the norm is in.
        own = {self.leaf(norm.path, name)[0] for name in norm.ranks}
        for place, step in enumerate(flow.steps):
            taken = {value for value in step.inputs if value is not None}
            used = {value for value in taken if value in own or flow.outside.get(value) in own}
            if not used or place in known or any(a < place < b for a, b in calls):
                continue
            entering = {value for value in used if value in flow.inside}
            if step.name in LOOPS and entering == used:
                own |= {inner for value in used for inner in flow.inside[value]}
            elif used == taken:
                own |= set(step.outputs)
            else:
                return True
        return not own.isdisjoint(flow.outputs)

    def why_not_stacked(self, layer: LayerCall, norm: NormCall) -> str:
        stacks = set()
        for call in (layer, norm):
            for name, rank in call.ranks.items():
                leaf, shape = self.leaf(call.path, name)
                stacks.add(len(shape) - rank)
                through = SAME | {"concatenate"}
                tags = self.tagged[call.path, name]
                if any(self.flow.source(tag.inputs[0], through) != leaf for tag in tags):
                    place = label_of(call.path)
                    return f"{name} of {place} is stacked along another axis than the first"
        together = f"{label_of(layer.path)} and it are not stacked alike by scan or vmap"
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
                return label_of(call.path)
            for value in step.inputs:
                maker = self.maker(value)
                if maker is not None and value not in seen:
                    seen.add(value)
                    waiting.append(maker)
        return "the model's input"


def label_of(path: Path) -> str:
    """Returns what errors and reasons call a module."""
    return "/".join(path) or "the model"
