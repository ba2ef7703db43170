"""The libraries that the benchmark compares, and what it measures of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm.cli.bench import timing
from jaxnorm.cli.bench.cases import NORMS, make_data
from jaxnorm.cli.bench.measure import describe_failures, measure
from jaxnorm.cli.errors import UserError
from jaxnorm.cli.peers import installed
from jaxnorm.cli.peers.case import EPSILON, MOMENTUM, Case, Data
from jaxnorm.cli.peers.case import NORMS as ALL_NORMS
from jaxnorm.cli.peers.jax_libraries import load_flax, load_jaxnorm
from jaxnorm.cli.peers.jax_peer import JaxPeer
from jaxnorm.cli.peers.peer import Unavailable, import_peer
from tests.cli.bench.cells import LAYER
from tests.support import reference

pytestmark = pytest.mark.quickly_compiled


def make_unavailable(monkeypatch, *names):
    def fail():
        raise Unavailable("it is not installed")

    loaders = {name: fail if name in names else load_jaxnorm for name in installed.PEERS}
    monkeypatch.setattr(installed, "LOADERS", loaders)


def test_a_peer_that_is_asked_for_must_be_there(monkeypatch):
    make_unavailable(monkeypatch, "haiku")
    with pytest.raises(UserError) as caught:
        installed.load(("flax.linen", "haiku"))
    assert str(caught.value) == (
        "cannot compare with haiku: it is not installed; leave it out of --peers"
    )


def test_a_library_that_is_not_installed_says_how_to_get_it():
    with pytest.raises(Unavailable) as caught:
        import_peer("no_such_library", "its-distribution")
    assert str(caught.value) == "it is not installed (pip install its-distribution)"


def test_a_library_that_does_not_fit_says_why(tmp_path, monkeypatch):
    (tmp_path / "misfit.py").write_text("raise AttributeError('jax has no old')")
    (tmp_path / "needy.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    for name, reason in (
        ("misfit", "jax has no old"),
        ("needy", "No module named 'no_such_library'"),
    ):
        with pytest.raises(Unavailable) as caught:
            import_peer(name, name)
        assert str(caught.value) == f"its import failed ({reason})"


def test_peers_that_are_not_there_are_named_when_none_is_asked_for(monkeypatch):
    make_unavailable(monkeypatch, "haiku", "torch")
    loaded, missing = installed.load(None)
    assert len(loaded) == 1 + len(installed.PEERS) - 2
    assert missing == ["haiku: it is not installed", "torch: it is not installed"]


@pytest.mark.parametrize("name", installed.PEERS)
def test_a_peer_is_loaded_or_says_why_not(name):
    try:
        ((_, peer), _) = installed.load((name,))
    except UserError as error:
        assert str(error).startswith(f"cannot compare with {name}: it")
    else:
        assert peer.name == name and peer.version[0].isdigit()


SHAPES = {"layer": (6, 64), "rms": (6, 64)}
POOLS = {
    "layer": lambda shape: reference.pools_over(shape, (-1,)),
    "rms": lambda shape: reference.pools_over(shape, (-1,)),
    "batch": lambda shape: reference.pools_over(shape, (0, 1, 2)),
    "group": lambda shape: reference.pools_of_groups(shape, 32, -1, (1, 2)),
    "instance": lambda shape: reference.pools_over(shape, (1, 2)),
}


@pytest.mark.parametrize("name", ("jaxnorm", *installed.PEERS))
def test_every_library_computes_the_same_thing(name):
    try:
        libraries, _ = installed.load(() if name == "jaxnorm" else (name,))
    except UserError as error:
        pytest.skip(str(error))
    library = libraries[-1]
    for norm in library.norms:
        case = Case(norm, SHAPES.get(norm, (3, 4, 2, 64)), "float32")
        data = Data(case)
        gamma, beta = (*data.parameters, None)[:2]
        kind = {"pools": POOLS[norm](case.shape), "feature_axes": (-1,), "epsilon": EPSILON}
        kind["formula"] = reference.over_rms if norm == "rms" else reference.standardized
        vjp = reference.over_rms_vjp if norm == "rms" else reference.standardized_vjp
        y = reference.normalize(data.x, gamma, beta, **kind)
        dx, *dparameters = reference.normalize_vjp(
            data.x, gamma, beta, None, data.dy, vjp=vjp, **kind
        )
        found = library.evaluate(case, data)
        expected = [y, dx, *(d for d in dparameters if d is not None)]
        # Float32, one-pass variances among them; instances of 8 elements make for small
        # variances. A wrong axis, layout, epsilon or parameter errs by 1e-2 and more.
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=2e-4, err_msg=norm)
        assert library.kept_bytes(case, data) >= case.input_bytes


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_channels_have_means_of_their_own_also_when_results_are_fed_back(norm, dtype):
    case = Case(norm, (4, 4, 4, 64), dtype)
    data = make_data(case)
    x = data.x.astype(np.float64).reshape(-1, 64)
    means = x.mean(0)
    if norm == "layer-pixels":
        assert 0 <= x.min() < 0.1 < 0.9 < x.max() <= 1
        assert [p.mean() for p in data.parameters] == pytest.approx([12**-0.5, 0.5])
        return
    if norm == "layer-odd":
        assert x[-1].mean() == pytest.approx(5, abs=0.5)
        x[-1] -= 5
        means = x.mean(0)
    assert means.std() == pytest.approx(1, abs=0.3)
    assert (x - means).std() == pytest.approx(1, abs=0.05)
    if norm == "rms":
        return
    gamma, beta = data.parameters
    # The result of batch norm: what a short program is given next.
    y = beta + gamma * (x - means) / x.std(0)
    # Of the odd row, one of 64, bfloat16 has lost up to 2^-6.
    np.testing.assert_allclose(y.mean(0), means, atol=2**-12 if norm == "layer-odd" else 1e-5)
    if case.kind != "batch":
        assert data.running == ()
        return
    near, var = data.running
    assert near.dtype == var.dtype == np.float32
    if norm == "batch-first":
        assert (near == 0).all() and (var == 1).all()
        return
    away = np.abs(near - means) / x.std(0)
    assert 0.05 < away.max() <= 0.1001
    np.testing.assert_allclose(var, x.var(0), rtol=1e-4)


@pytest.mark.parametrize("package", ["jaxnorm", "flax.linen"])
def test_batch_norm_starts_from_the_running_statistics_that_it_is_given(package):
    library = {"jaxnorm": load_jaxnorm, "flax.linen": load_flax}[package]()
    changes = {}
    for norm in ("batch", "batch-first"):
        case = Case(norm, (4, 4, 4, 64), "float32")
        data = make_data(case)
        (program,) = library.programs(case, data, backward=False)
        y, running = program.wait(program.call())
        assert y.shape == case.shape
        running = {name: np.asarray(a) for name, a in running["batch_stats"].items()}
        mean = data.x.mean((0, 1, 2))
        expected = MOMENTUM * data.running[0] + (1 - MOMENTUM) * mean
        np.testing.assert_allclose(running["mean"], expected, atol=1e-5)
        changes[norm] = np.abs(running["mean"] - mean).max()
    assert changes["batch"] < 0.2 < 1 < changes["batch-first"]


def test_the_cotangent_depends_on_the_result_as_in_a_model():
    function = load_jaxnorm().function(LAYER, backward=True)
    shape, channel = jnp.zeros(LAYER.shape), jnp.zeros(LAYER.shape[-1:])
    jaxpr = jax.make_jaxpr(function)(shape, shape, channel, channel).jaxpr
    (barrier,) = (e for e in jaxpr.eqns if e.primitive.name == "optimization_barrier")
    # The result is what passed the barrier, and the pullback is given what passed it.
    assert jaxpr.outvars[0] is barrier.outvars[0]
    assert barrier.invars[1] is jaxpr.invars[0]
    assert any(barrier.outvars[1] in e.invars for e in jaxpr.eqns)


def make_peer(function, name="jaxnorm", norms=ALL_NORMS):
    return JaxPeer(name, "1", lambda case: function, norms)


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda x, gamma, beta: (x * 2 + beta[None], ()), 0),
        # x, used twice, counts once.
        (lambda x, gamma, beta: (x * x * x, ()), 4 * 32 * 2),
        (lambda x, gamma, beta: (jnp.sin(x), ()), 4 * 32),
        # In bfloat16 half of that.
        (lambda x, gamma, beta: (jnp.sin(x.astype(jnp.bfloat16)), ()), 2 * 32),
        # x and gamma.
        (lambda x, gamma, beta: (x * gamma[None], ()), 4 * 32 + 4 * 8),
        # What is not differentiated is not kept.
        (lambda x, gamma, beta: (x, jnp.sin(x)), 0),
    ],
)
def test_kept_bytes_are_the_arrays_that_the_backward_pass_needs(function, kept):
    assert make_peer(function).kept_bytes(LAYER, Data(LAYER)) == kept


def test_the_copy_reads_and_writes_every_byte_and_computes_nothing():
    for dtype in ("float32", "bfloat16"):
        case = LAYER._replace(dtype=dtype)
        data = Data(case)
        for backward, arrays in ((False, [data.x]), (True, [data.x, data.dy])):
            program = timing.copy_program(case, data, backward)
            results = program.wait(program.call())
            assert [(r.shape, r.dtype) for r in results] == [(a.shape, a.dtype) for a in arrays]
            for result, array in zip(results, arrays, strict=True):
                # The last bit differs, and no other.
                bits = f"uint{8 * array.dtype.itemsize}"
                flipped = np.asarray(result).view(bits) ^ array.view(bits)
                assert (flipped == 1).all()


def test_a_library_that_fails_is_left_out_and_named():
    def fail(*_):
        raise RuntimeError("no such kernel\nand a long story")

    libraries = [
        load_jaxnorm(),
        make_peer(fail, "flax.linen"),
        make_peer(fail, "tokamax", norms=("rms",)),
    ]
    cell = measure(LAYER, Data(LAYER), True, libraries, 1)
    assert [m.library for m in cell.measurements] == ["jaxnorm"]
    assert describe_failures([cell]) == [
        "flax.linen cannot run layer norm here: RuntimeError: no such kernel"
    ]


def test_a_failure_of_jaxnorm_is_a_defect():
    def fail(*_):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        measure(LAYER, Data(LAYER), False, [make_peer(fail)], 1)
