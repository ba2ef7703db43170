"""The peers by name, and which of them can be used here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxnorm.cli.errors import UserError
from jaxnorm.cli.peers import jax_libraries, torch_peer
from jaxnorm.cli.peers.peer import Peer, Unavailable

LOADERS: dict[str, Callable[[], Peer]] = {
    "flax.linen": jax_libraries.load_flax,
    "haiku": jax_libraries.load_haiku,
    "equinox": jax_libraries.load_equinox,
    "tokamax": jax_libraries.load_tokamax,
    "torch": torch_peer.load_eager,
    "torch.compile": torch_peer.load_compiled,
}
PEERS = tuple(LOADERS)


def load(names: Sequence[str] | None) -> tuple[list[Peer], list[str]]:
    """Imports jaxnorm and its peers.

    Args:
      names: peers, of `PEERS`; None for all that can be used here.

    Returns:
      jaxnorm and the peers, and a line for each that cannot be used here.

    Raises:
      UserError: one of the named peers cannot be used here.
    """
    loaded: list[Peer] = [jax_libraries.load_jaxnorm()]
    missing = []
    for name in PEERS if names is None else names:
        try:
            loaded.append(LOADERS[name]())
        except Unavailable as error:
            if names is not None:
                raise UserError(
                    f"cannot compare with {name}: {error}; leave it out of --peers"
                ) from error
            missing.append(f"{name}: {error}")
    return loaded, missing
