"""`python -m jaxnorm bench --compile-for`: what is counted in compiled programs, and errors."""

import importlib.util

import jax
import pytest

from jaxnorm.cli.bench import chips, compiled, nets
from jaxnorm.cli.bench.chips import Compiled
from jaxnorm.cli.bench.compiled import Pair
from jaxnorm.cli.bench.hlo import Program
from jaxnorm.cli.peers.case import Case
from tests.cli.bench.cells import read_csv, run

pytestmark = pytest.mark.quickly_compiled


def cycles(count):
    return f'backend_config={{"window_config":{{"estimated_cycles":"{count}"}}}}'


FUSED = """
%fused (z: f32[8]) -> f32[8] {
  ROOT %z = f32[8] parameter(0)
}
"""

# Ordinary data take the branch that returns what it is given.
CONDITIONAL = f"""HloModule jit_f, is_scheduled=true
{FUSED}
%again (a: (f32[8])) -> (f32[8]) {{
  %a = (f32[8]{{0:T(128)}}) parameter(0)
  %b = f32[8]{{0:T(128)}} get-tuple-element(%a), index=0
  %slow = f32[8]{{0:T(128)}} fusion(%b), kind=kLoop, calls=%fused, {cycles(5000)}
  %sum = f32[8]{{0:T(128)}} all-reduce(%slow), to_apply=%add
  ROOT %c = (f32[8]{{0:T(128)}}) tuple(%sum)
}}

%mixed (a.1: (f32[8])) -> (f32[8]) {{
  %a.1 = (f32[8]{{0:T(128)}}) parameter(0)
  %p = s32[]{{:T(128)}} constant(1)
  ROOT %inner = (f32[8]) conditional(%p, %a.1, %a.1), branch_computations={{%as_is, %again}}
}}

%as_is (a.2: (f32[8])) -> (f32[8]) {{
  ROOT %a.2 = (f32[8]{{0:T(128)}}) parameter(0)
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0:T(128)}} parameter(0), sharding={{replicated}}
  %quick = f32[8]{{0:T(128)S(1)}} fusion(%x), kind=kLoop, calls=%fused, {cycles(40)}
  %trusted = pred[]{{:T(512)}} fusion(%quick), kind=kLoop, calls=%fused, {cycles(2)}
  %all = pred[]{{:T(512)}} all-reduce(%trusted), to_apply=%and
  %both = f32[8]{{0:T(128)}} all-reduce(%quick), to_apply=%add
  %t = (f32[8]{{0:T(128)}}) tuple(%both)
  %out = (f32[8]{{0:T(128)}}) conditional(%all, %t, %t), BRANCHES
  ROOT %y = f32[8]{{0:T(128)}} get-tuple-element(%out), index=0
}}
"""


@pytest.mark.parametrize(
    ("branches", "count", "collectives"),
    [
        ("true_computation=%again, false_computation=%as_is", 42, 1),
        ("branch_computations={%as_is, %again}", 42, 1),
        ("branch_computations={%mixed, %again}", 42, 1),
        ("branch_computations={%again}", 5042, 2),
    ],
)
def test_of_a_conditional_the_branch_of_ordinary_data_counts(branches, count, collectives):
    program = Program(CONDITIONAL.replace("BRANCHES", branches))
    assert program.entry == "main"
    assert program.count_cycles() == count
    # The boolean is no array.
    assert program.count_collectives() == collectives


LOOP = f"""{FUSED}
%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %s = (s32[], f32[8]) parameter(0)
  %v = f32[8] get-tuple-element(%s), index=1
  %twice = f32[8] call(%v), to_apply=%called
  %sum = f32[8] fusion(%twice), kind=kOutput, calls=%exchange, {cycles(3)}
  ROOT %r = (s32[], f32[8]) tuple(%i, %sum)
}}

%exchange (e: f32[8]) -> f32[8] {{
  %e = f32[8] parameter(0)
  ROOT %g = f32[8] all-reduce-start(%e), to_apply=%add
}}

%called (d: f32[8]) -> f32[8] {{
  %d = f32[8] parameter(0)
  ROOT %h = f32[8] fusion(%d), kind=kLoop, calls=%fused, {cycles(7)}
}}

%condition (s.1: (s32[], f32[8])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(6)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %loop = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  ROOT %y = f32[8] get-tuple-element(%loop), index=1
}}
"""


def test_what_is_in_a_loop_counts_as_often_as_it_runs():
    program = Program(LOOP)
    assert (program.count_cycles(), program.count_collectives()) == (6 * (7 + 3), 6)
    told = 'body=%body, backend_config={"known_trip_count":{"n":"4"}}'
    program = Program(LOOP.replace("body=%body", told))
    assert (program.count_cycles(), program.count_collectives()) == (4 * (7 + 3), 4)


GPU = """
%sliced (p.0: f32[6,100], p.1: s32[], p.2: f32[100]) -> f32[100] {
  %p.0 = f32[6,100]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %p.2 = f32[100]{0} parameter(2)
  %slice = f32[1,100]{1,0} dynamic-slice(%p.0, %p.1, %p.1), dynamic_slice_sizes={1,100}
  %flat = f32[100]{0} bitcast(%slice)
  ROOT %add = f32[100]{0} add(%flat, %p.2)
}

%kept (q.0: f32[6,100], q.1: f32[100], q.2: s32[]) -> (f32[6,100], bf16[100]) {
  %q.0 = f32[6,100]{1,0} parameter(0)
  %q.1 = f32[100]{0} parameter(1)
  %q.2 = s32[] parameter(2)
  %row = f32[1,100]{1,0} bitcast(%q.1)
  %update = f32[6,100]{1,0} dynamic-update-slice(%q.0, %row, %q.2, %q.2)
  %half = bf16[100]{0} convert(%q.1)
  ROOT %two = (f32[6,100]{1,0}, bf16[100]{0}) tuple(%update, %half)
}

%halved (h.0: f32[6,100]) -> (f32[50], f32[600]) {
  %h.0 = f32[6,100]{1,0} parameter(0)
  %whole = f32[600]{0} bitcast(%h.0)
  %few = f32[50]{0} slice(%whole), slice={[0:50]}
  %more = f32[600]{0} negate(%whole)
  ROOT %pair = (f32[50]{0}, f32[600]{0}) tuple(%few, %more)
}

ENTRY %main (x: f32[6,100], i: s32[], y: f32[100]) -> f32[100] {
  %x = f32[6,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %y = f32[100]{0} parameter(2)
  LINE
}
"""


@pytest.mark.parametrize(
    ("line", "count"),
    [
        # A row of x, the index, y; the result.
        ("%f = f32[100]{0} fusion(%x, %i, %y), kind=kLoop, calls=%sliced", 400 + 4 + 400 + 400),
        (
            "%f = ((f32[6,100]{1,0}, s32[], f32[100]{0}), f32[100]{0}, u32[]) "
            "fusion-start(%x, %i, %y), kind=kLoop, calls=%sliced",
            400 + 4 + 400 + 400,
        ),
        # In place: y and the index; a row and the half.
        (
            "%f = (f32[6,100]{1,0}, bf16[100]{0}) fusion(%x, %y, %i), kind=kLoop, calls=%kept",
            400 + 4 + 400 + 200,
        ),
        # Sliced, but also read in full.
        (
            "%f = (f32[50]{0}, f32[600]{0}) fusion(%x), kind=kLoop, calls=%halved",
            2400 + 200 + 2400,
        ),
        ("%f = f32[100]{0} negate(%y)", 800),
        ("%f = f32[100]{0} bitcast(%y)", 0),
        ("%f = f32[1,100]{1,0} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={1,100}", 804),
        # With memory to work in, which is not counted.
        (
            '%f = (f32[100]{0}, s8[4096]{0}) custom-call(%x, %y), custom_call_target="cublas"',
            2400 + 400 + 400,
        ),
        ("%f = f32[100]{0} all-reduce-start(%y), to_apply=%add", 800),
    ],
)
def test_bytes_are_what_kernels_read_and_write(line, count):
    assert Program(GPU.replace("LINE", line)).count_bytes() == count


def make_pair(ours, theirs, direction="forward"):
    labels = ("layer", "4x8", "float32", direction)
    return Pair(labels, *(Compiled(cost, 3 * cost, 0, 1.0) for cost in (ours, theirs)))


def test_the_means_are_geometric_and_name_the_worst():
    pairs = [make_pair(1000, 2000), make_pair(4000, 2000), make_pair(10**6, 10**6, "both")]
    assert compiled.make_means(pairs) == [
        "forward: flax.linen / jaxnorm 1.00 in the mean of 2, 1 below 0.95, the lowest 0.50: layer "
        "4x8 float32 forward; compiling, jaxnorm / flax.linen, 1.00 in the mean; temporary memory "
        "1.00, at most 1.00.",
        "both: flax.linen / jaxnorm 1.00 in the mean of 1, 0 below 0.95, the lowest 1.00: layer "
        "4x8 float32 both; compiling, jaxnorm / flax.linen, 1.00 in the mean; temporary memory "
        "1.00, at most 1.00.",
    ]


SEE_HELP = "(see python -m jaxnorm bench --help)"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "--compile-for v4",
            "argument --compile-for: unknown 'v4', expected v5e, v5p, v6e, h100 " + SEE_HELP,
        ),
        ("--devices 4", "--devices has no effect without --compile-for; leave it out"),
        ("--explicit", "--explicit has no effect without --compile-for; leave it out"),
        (
            "--compile-for v5e --explicit",
            "--explicit has no effect without --devices; leave it out",
        ),
        (
            "--compile-for v5e --quick",
            "--quick has no effect with --compile-for; leave it out",
        ),
        (
            "--compile-for v5e --growth",
            "--growth has no effect with --compile-for; leave it out",
        ),
        (
            "--compile-for v5e --models --rounds 3",
            "--rounds has no effect with --compile-for; leave it out",
        ),
        ("--compile-for v5e --devices 9", "--devices: expected at most 8, got 9"),
        (
            "--compile-for v5e --devices 3 --norms rms --shapes 4x8",
            "the first axis of 4x8 does not divide over --devices 3",
        ),
        (
            "--compile-for v5e --models --norms layer --shapes 4x8x8x64",
            "the model of layer norm needs a shape of 3 sizes, the last a multiple of 12; see "
            "--shapes",
        ),
        (
            "--compile-for v5e --models --norms batch --shapes 4x8x8x65",
            "the model of batch norm needs a shape of 4 sizes, the last a multiple of 64; see "
            "--shapes",
        ),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, capsys, arguments, text):
    status, lines, errors = run(capsys, *arguments.split(), "--out", tmp_path)
    assert (status, lines, errors) == (2, [], [f"jaxnorm: {text}"])


@pytest.mark.parametrize(
    ("chip", "package", "extra"),
    [("v5e", "libtpu", "tpu"), ("h100", "jax_cuda12_plugin", "gpu")],
)
def test_a_compiler_that_is_not_installed_is_named(
    tmp_path, capsys, monkeypatch, chip, package, extra
):
    find, absent = importlib.util.find_spec, ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in absent else find(name)
    )
    status, lines, errors = run(capsys, "--compile-for", chip, "--out", tmp_path)
    assert (status, lines) == (2, [])
    assert errors == [
        f'jaxnorm: this command needs {package}, not installed here: pip install "jaxnorm[{extra}]"'
    ]


@pytest.mark.parametrize(
    "text",
    [
        'ABORTED: Internal error when accessing libtpu multi-process lockfile. Run "$ sudo rm".',
        "ABORTED: The TPU is already in use by process with pid 4.",
    ],
)
def test_a_compiler_that_another_process_has_is_told(tmp_path, capsys, monkeypatch, text):
    def locked(**_):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(chips, "require", lambda *_, **__: None)
    monkeypatch.setattr(chips.topologies, "get_topology_desc", locked)
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.setenv(name, "unchanged")
    status, lines, errors = run(capsys, "--compile-for", "v5e", "--out", tmp_path)
    assert (status, lines) == (2, [])
    assert errors == [
        "jaxnorm: libtpu serves one process at a time, and another one has it: wait for that to "
        "end, or set ALLOW_MULTIPLE_LIBTPU_LOAD=1"
    ]


def run_or_skip(capsys, *arguments):
    """Runs the command; skips the test where the compiler cannot be had."""
    status, lines, errors = run(capsys, "--compile-for", "v5e", *arguments)
    if status == 2 and "libtpu" in errors[-1]:
        pytest.skip(errors[-1])
    assert status == 0, errors
    return lines, errors


def test_norms_are_compiled_for_a_tpu(tmp_path, capsys):
    lines, errors = run_or_skip(
        capsys, *"--norms layer --shapes 64x128 --dtypes bfloat16 --out".split(), tmp_path
    )
    assert errors[-1] == f"Done; wrote {tmp_path}/compiled.csv."
    assert lines[0] == "v5e: estimated cycles as multiples of a copy's".ljust(len(lines[0]))
    text = "\n".join(lines)
    assert "│ layer, mask │ 64x128 │ bfloat16 │ forward          │" in text
    assert (
        "These are the estimates of XLA's compiler (estimated_cycles, summed), not measured times: "
        "nothing has run." in lines
    )
    assert lines[-1].startswith("Compiled for v5e; ") and ", libtpu " in lines[-1]
    rows = read_csv(tmp_path / "compiled.csv")
    assert [(r["norm"], r["direction"], r["library"]) for r in rows] == [
        (norm, direction, library)
        for norm in ("layer", "layer, mask")
        for direction in ("forward", "forward+backward")
        for library in ("jaxnorm", "flax.linen")
    ]
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        assert ours["unit"] == "estimated cycles" and ours["device"] == "v5e"
        assert int(ours["cost"]) > int(ours["copy_cost"]) == int(theirs["copy_cost"]) > 0
        ratio = int(theirs["cost"]) / int(ours["cost"])
        assert float(theirs["times_jaxnorm"]) == pytest.approx(ratio, rel=1e-3)


@pytest.mark.parametrize("explicit", [False, True])
def test_a_batch_divided_over_chips_adds_collectives(tmp_path, capsys, explicit):
    options = ("--explicit",) if explicit else ()
    lines, _ = run_or_skip(
        capsys,
        *"--norms batch --shapes 32x8x8x128 --dtypes float32 --devices 4 --out".split(),
        tmp_path,
        *options,
    )
    axes = ", explicit axes" if explicit else ""
    assert lines[-1].startswith(f"Compiled for 4 v5e, the batch divided{axes}; ")
    theirs = read_csv(tmp_path / "compiled.csv")[1::2]
    # The sums of x and x^2, and backward those of dy and dy x.
    assert [int(row["collectives"]) for row in theirs] == [1, 2, 1, 2]


def test_models_are_compiled_written_out_and_in_a_scan(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compiled, "LAYERS", {"written out": 1, "scan": 2})
    lines, _ = run_or_skip(
        capsys,
        *"--models --norms batch --shapes 2x4x4x64 --dtypes bfloat16 --markdown --out".split(),
        tmp_path,
    )
    for layers in ("1, written out", "2, scan"):
        row = f"| bottleneck, batch norm | 2x4x4x64 | bfloat16 | {layers} | "
        assert any(line.startswith(row) for line in lines)
    rows = read_csv(tmp_path / "compiled-models.csv")
    assert len(rows) == 4 and all(int(row["cost"]) > 0 for row in rows)
    assert all(row["copy_cost"] == "" for row in rows)


def test_models_are_of_norms_and_shapes_that_fit():
    cases = nets.list_cases(("layer", "batch"), compiled.MODEL_SHAPES, ("float32",))
    assert cases == [
        Case("layer", (32, 256, 768), "float32"),
        Case("batch", (32, 28, 28, 256), "float32"),
    ]
