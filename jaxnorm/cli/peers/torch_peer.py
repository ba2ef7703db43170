"""How PyTorch's normalizations are called: eagerly, and compiled where there is a GPU."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxnorm.cli.peers.case import EPSILON, MOMENTUM, NORMS, Case, Data
from jaxnorm.cli.peers.peer import Program, Unavailable, import_peer


class TorchPeer:
    """PyTorch, on the kind of device that JAX uses.

    Attributes:
      torch: the package.
      device: "cpu" or "cuda".
      compiles: whether its functions go through `torch.compile`.
      own: a function (torch, x, *parameters) in place of its norms, and the kind that it is.
    """

    def __init__(
        self,
        name: str,
        torch: Any,
        device: str,
        compiles: bool,
        own: tuple[str, Callable[..., Any]] | None = None,
    ):
        self.name, self.version = name, torch.__version__
        self.norms: Sequence[str] = (own[0],) if own else NORMS
        self.torch, self.device, self.compiles, self.own = torch, device, compiles, own

    def of(self, kind: str, function: Callable[..., Any]) -> TorchPeer:
        """Returns the peer whose one norm is that function of (torch, x, *parameters)."""
        return TorchPeer(self.name, self.torch, self.device, self.compiles, (kind, function))

    def programs(self, case: Case, data: Data, backward: bool) -> list[Program]:
        """Returns a program for each memory layout that PyTorch has; see `Peer`."""
        layouts = (True, False) if _is_spatial(case) else (False,)
        return [self._program(case, data, backward, layout) for layout in layouts]

    def kept_bytes(self, case: Case, data: Data) -> int:
        """Counts the storages of the tensors saved for the backward pass; see `Peer`."""
        x, parameters, _ = self._tensors(case, data, backward=True)
        kept: dict[int, int] = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with self.torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            # Held until counted, so that no storage takes the place of one that was freed.
            y = self._normalization(case, data)(x, *parameters)
        total = sum(kept.values())
        del y
        return total

    def evaluate(self, case: Case, data: Data) -> tuple[np.ndarray, ...]:
        """Returns y, dx and the parameters' cotangents; see `Peer`."""
        x, parameters, dy = self._tensors(case, data, backward=True)
        y = self._normalization(case, data)(x, *parameters)
        dx, *dparameters = self.torch.autograd.grad(y, (x, *parameters), dy)
        if _is_spatial(case):
            y, dx = (a.movedim(1, -1) for a in (y, dx))
        return tuple(a.detach().double().cpu().numpy() for a in (y, dx, *dparameters))

    def _program(self, case: Case, data: Data, backward: bool, channels_last: bool) -> Program:
        torch = self.torch
        x, parameters, dy = self._tensors(case, data, backward, channels_last)
        normalization = self._normalization(case, data)
        if self.compiles:
            torch.compiler.reset()
            normalization = torch.compile(normalization, dynamic=False)

        def forward():
            with torch.no_grad():
                return normalization(x, *parameters)

        def with_cotangents():
            y = normalization(x, *parameters)
            return y, torch.autograd.grad(y, (x, *parameters), dy)

        call = with_cotangents if backward else forward
        seconds = None
        if self.compiles:
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        on_gpu = self.device == "cuda"
        return Program(
            call=lambda _=None: call(),  # CUDA runs calls one by one anyway
            wait=(lambda _: torch.cuda.synchronize()) if on_gpu else (lambda _: None),
            queues=on_gpu,
            compile_seconds=seconds,
        )

    def _tensors(self, case: Case, data: Data, backward: bool, channels_last: bool = True):
        """Returns x, the parameters and dy; spatial x as (N, C, ...) in either memory layout."""
        dtype = getattr(self.torch, case.dtype)

        def tensor(array: np.ndarray, dtype):
            # Through float32, because NumPy's bfloat16 is unknown to PyTorch.
            host = self.torch.tensor(np.asarray(array, np.float32))
            return host.to(device=self.device, dtype=dtype)

        x, dy = (tensor(a, dtype) for a in (data.x, data.dy))
        if _is_spatial(case):
            x, dy = (a.movedim(-1, 1) for a in (x, dy))
            if not channels_last:
                x, dy = x.contiguous(), dy.contiguous()
        # PyTorch has no fused RMS norm for a wider gamma.
        wide = dtype if case.norm == "rms" else self.torch.float32
        parameters = tuple(tensor(p, wide).requires_grad_(backward) for p in data.parameters)
        return x.requires_grad_(backward), parameters, dy

    def _normalization(self, case: Case, data: Data) -> Callable[..., Any]:
        torch, functional = self.torch, self.torch.nn.functional
        if self.own:
            return functools.partial(self.own[1], torch)
        features = case.shape[-1:]
        match case.kind:
            case "layer":
                return lambda x, gamma, beta: functional.layer_norm(
                    x, features, gamma, beta, EPSILON
                )
            case "rms":
                return lambda x, gamma: functional.rms_norm(x, features, gamma, EPSILON)
            case "batch":
                mean, var = (torch.tensor(a, device=self.device) for a in data.running)
                return lambda x, gamma, beta: functional.batch_norm(
                    x, mean, var, gamma, beta, True, 1 - MOMENTUM, EPSILON
                )
            case "group":
                return lambda x, gamma, beta: functional.group_norm(
                    x, case.num_groups, gamma, beta, EPSILON
                )
            case _:
                return lambda x, gamma, beta: functional.instance_norm(
                    x, weight=gamma, bias=beta, eps=EPSILON
                )


def _is_spatial(case: Case) -> bool:
    return case.kind not in ("layer", "rms") and len(case.shape) > 2


def load_eager() -> TorchPeer:
    """Returns PyTorch as it runs by default."""
    return TorchPeer("torch", *_import(), compiles=False)


def load_compiled() -> TorchPeer:
    """Returns PyTorch under `torch.compile`, on a GPU."""
    torch, device = _import()
    if device == "cpu":
        raise Unavailable("it is compared on a GPU only")
    return TorchPeer("torch.compile", torch, device, compiles=True)


def _import() -> tuple[Any, str]:
    torch = import_peer("torch", "torch")
    backend = jax.default_backend()
    if backend == "cpu":
        return torch, "cpu"
    if backend != "gpu" or not torch.cuda.is_available():
        raise Unavailable(f"it cannot use the {backend} that JAX uses")
    return torch, "cuda"
