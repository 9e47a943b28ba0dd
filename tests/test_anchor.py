"""The anchor of MeZO-SVRG: as a displacement it is where a copy of the weights is, and no failed step moves it."""

from __future__ import annotations

import gc
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import build_model, with_soak
from least_squares import (
    BATCH,
    IN_FORWARD,
    IN_PLACE,
    LR,
    SEED,
    LeastSquares,
    N,
    build,
    theta_of,
    training_context,
    written_out,
)
from zofo.backbone import Backbone
from zofo.displacement import Displacement, Key
from zofo.errors import ModelError, NonFiniteError
from zofo.evaluators import in_forward
from zofo.methods import METHODS, SVRG, SVRGConfig, TrainingContext
from zofo.noise import Gaussian

VOCABULARY, LENGTH = 40, 6
ONE_LAYER = "gpt2, one layer"


def token_losses(model, ids):
    logits = model(input_ids=ids).logits[:, :-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1).mean(1)


def sequences(count, seed):
    """Tokens that each tell much of the next one, so that there is something to learn."""
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(3, VOCABULARY, (count, 1), generator=draw)
    return 3 + (first + torch.arange(LENGTH) * 5) % (VOCABULARY - 3)


def language_model(kind, dtype, nudge=None):
    """With `nudge`, every weight starts at one of its neighbours in float32 instead."""
    model = build_model(kind.partition(",")[0], VOCABULARY, positions=16)
    if kind == ONE_LAYER:
        del model.transformer.h[1]
        model.config.n_layer = 1
    if nudge is not None:
        draw = torch.Generator().manual_seed(nudge)
        for parameter in model.parameters():
            parameter.data *= 1 + 6e-8 * torch.randn(parameter.shape, generator=draw).sign()
    return model.to(dtype)


def trained(kind=ONE_LAYER, dtype=torch.float32, steps=10, nudge=None, **options):
    """A method after some steps on a language model, with what it logged."""
    given = {"batch_size": BATCH, "rule": {"lr": 1e-3}, "lr_full": 1e-3, **options}
    context = TrainingContext(
        language_model(kind, dtype, nudge), token_losses, list(sequences(N, 0)), torch.stack, SEED
    )
    method = SVRG(SVRGConfig.model_validate(given), context)
    return method, [method.step(step) for step in range(steps)]


def validation_loss(method):
    with method.using(method.variants[0]), torch.no_grad():
        return token_losses(method.model, sequences(64, 1)).double().mean().item()


def logged(logs, start):
    """All numbers of the logs whose names start so, in order."""
    found = [value for log in logs for name, value in sorted(log.coefficients.items()) if name.startswith(start)]
    return torch.tensor(found, dtype=torch.float64)


def differences(one, other):
    """The largest of the losses, relative; of the slopes, in their spread; and of validation, after all steps."""
    (method, logs), (same, others) = one, other
    losses, expected = (torch.tensor([log.loss for log in each], dtype=torch.float64) for each in (logs, others))
    slopes, right = (logged(each, "projected_gradient") for each in (logs, others))
    assert len(slopes) == len(right)
    return (
        ((losses - expected).abs() / expected).max().item(),
        ((slopes - right).abs().max() / right.std()).item(),
        abs(validation_loss(method) - validation_loss(same)),
    )


# a displacement against a copy

NOISES = {
    "in place": {**IN_PLACE, "rule": {"lr": 5e-4}, "lr_full": 5e-4},
    "in the forward": IN_FORWARD,
    "per-example": {**IN_FORWARD, "directions": "per-example"},
}
IN_SECONDS = {("in the forward", 5), ("in place", 5)}
GRID = [
    pytest.param(kind, where, q, marks=[] if kind == ONE_LAYER and (where, q) in IN_SECONDS else pytest.mark.soak)
    for kind in (ONE_LAYER, "gpt2", "opt", "llama")
    for where in NOISES
    for q in (2, 5, 10)
]


@pytest.mark.parametrize(("kind", "where", "q"), GRID)
def test_in_float32_the_displaced_anchor_is_where_the_copy_is(kind, where, q):
    """At a rate at which steps do not make rounding grow: see the next test."""
    steps = 30 if kind == ONE_LAYER and (where, q) in IN_SECONDS else 200
    options = {"kind": kind, "steps": steps, "anchor_interval": q, **NOISES[where]}
    options |= {"rule": {"lr": 3e-4}, "lr_full": 3e-4}
    one = trained(**options)
    losses, slopes, validation = differences(one, trained(anchor="copy", **options))
    assert losses < 1e-5
    assert slopes < 1e-2
    assert validation < 1e-3
    untrained = validation_loss(trained(kind, steps=0)[0])
    assert abs(validation_loss(one[0]) - untrained) > 5e-3  # there was much to differ in


@pytest.mark.soak
@pytest.mark.parametrize(
    ("kind", "where", "q"),
    [
        (ONE_LAYER, "in place", 5),
        ("opt", "in the forward", 5),
        ("opt", "in the forward", 10),
        ("opt", "per-example", 10),
        ("llama", "in the forward", 5),
        ("llama", "per-example", 10),
    ],
)
def test_at_rates_that_make_rounding_grow_it_is_no_farther_than_a_copy_that_starts_one_rounding_away(kind, where, q):
    """Up to 1e-3 of the loss: no two ways of computing the same steps can then agree to 1e-5."""
    lr = 2e-3 if where == "in place" else 1e-3
    options = {"kind": kind, "steps": 200, "anchor_interval": q, **NOISES[where], "rule": {"lr": lr}, "lr_full": lr}
    copied = trained(anchor="copy", **options)
    displaced = differences(trained(**options), copied)
    nudged = [differences(trained(anchor="copy", nudge=seed, **options), copied) for seed in range(3)]
    for found, *others in zip(displaced, *nudged, strict=True):
        assert found < 5 * max(others)


@pytest.mark.parametrize(
    ("kind", "where", "q"),
    [param for param in GRID if param.values[0] != "llama"],  # whose norms are in float32, whatever the model is in
)
def test_in_float64_it_is_there_to_nine_digits(kind, where, q):
    steps = 20 if kind == ONE_LAYER else 200
    options = {"kind": kind, "dtype": torch.float64, "steps": steps, "anchor_interval": q, **NOISES[where]}
    losses, slopes, validation = differences(trained(**options), trained(anchor="copy", **options))
    assert losses < 1e-9
    assert slopes < 1e-9
    assert validation < 1e-9


LORA = {"adapter": "lora"}
OTHERS = {
    "some tensors": {"trainable": ["*.ln_*", "*.mlp.*"], **IN_FORWARD},
    "some tensors in place": {"trainable": ["*.mlp.*"], **IN_PLACE},
    "two directions": {"num_directions": 2, **IN_FORWARD},
    "one-sided": {"estimator": {"name": "one-sided", "epsilon": 1e-3}, **IN_FORWARD},
    "per-example": {"directions": "per-example", **IN_FORWARD},
    "groups": {"directions": "per-group(2)", **IN_FORWARD},
    "per-example for g alone": {"directions": "shared", "anchor_directions": "per-example", **IN_FORWARD},
    "independent": {"control_variate": "independent", **IN_FORWARD},
    "full-batch": {"control_variate": "full-batch", **IN_FORWARD},
    "momentum": {"rule": {"name": "momentum", "lr": 5e-4}, "lr_full": 5e-4, **IN_FORWARD},
    "rank 2": {"noise": {"name": "low-rank", "rank": 2}},
    "low rank in place": {"noise": "low-rank", "evaluator": "in-place"},
    "chunks": {"anchor_batch_size": 10, "anchor_chunk": 3, "anchor_sample": "fresh", **IN_FORWARD},
    "LoRA in the forward": {**LORA, "rule": {"lr": 1e-2}, "lr_full": 1e-2, **IN_FORWARD},
    "LoRA in place": {**LORA, "rule": {"lr": 1e-2}, "lr_full": 1e-2, **IN_PLACE},
    "prefix": {"adapter": "prefix", "rule": {"lr": 1e-2}, "lr_full": 1e-2},
}


@pytest.mark.parametrize("case", OTHERS)
def test_so_it_is_with_every_part(case):
    options = {"anchor_interval": 5, "steps": 7, **OTHERS[case]}
    one, other = (trained(anchor=kind, **options) for kind in ("displacement", "copy"))
    losses, slopes, validation = differences(one, other)
    assert losses < 1e-5
    assert slopes < 1e-2
    assert validation < 1e-4
    method, (_, *logs) = one
    assert logged(logs, "projected_gradient_anchor").std() > 0
    assert {key.seed for log in logs for key in log.update.displacement} == {SEED}
    if "adapter" in OTHERS[case]:
        assert method.variants == ("adapter",)
        assert len(method.backbone.tensors) < len(list(method.model.named_parameters()))


@pytest.mark.parametrize("parts", [IN_PLACE, IN_FORWARD], ids=["in place", "in the forward"])
def test_a_copy_elsewhere_is_the_same_copy(parts):
    (one, logs), (other, others) = (trained(anchor=kind, anchor_interval=4, **parts) for kind in ("copy", "offload"))
    assert logs == others
    assert one.backbone.fingerprint() == other.backbone.fingerprint()
    assert all(tensor.device.type == "cpu" for tensor in other._anchored._anchor._stored.values())


# half precision


def weights_of(method):
    with method.using("model"):
        return torch.cat([tensor.flatten() for tensor in method.backbone.tensors.values()]).float()


def test_in_bfloat16_it_is_exact_while_the_updates_since_wait_beside_the_weights(monkeypatch):
    """Eight updates wait. Until they are written the weights are the anchor's, and what the anchor's rows carry is the
    probe alone; after that the updates since are taken off weights to which they were added with rounding."""
    carried, of_rows = [], in_forward.coefficients_of
    monkeypatch.setattr(
        in_forward, "coefficients_of", lambda *given: carried.append(of_rows(*given)) or carried[-1].clone()
    )
    method, _ = trained(dtype=torch.bfloat16, steps=1, anchor_interval=20)
    anchor = method.backbone.fingerprint()
    for step in range(1, 9):
        method.step(step)
        there, here = carried[-2:]
        near, far = (here, there) if step > 7 else (there, here)  # of what the weights hold
        assert torch.equal(near.sum(-1), torch.tensor([[1e-3] * BATCH, [-1e-3] * BATCH]))
        assert (near.count_nonzero(dim=-1) == 1).all()
        assert (far.count_nonzero(dim=-1) == step + 1).all()  # the probe, g's key, and one of each minibatch step
        assert (method.backbone.fingerprint() == anchor) == (step < 7)  # the eighth update is that of step 7


@pytest.mark.parametrize(
    ("rank", "directions", "options", "exact"),
    [
        (1, 1, {}, 7),
        pytest.param(2, 1, {}, 4, marks=pytest.mark.soak),
        (4, 1, {}, 2),
        pytest.param(8, 1, {}, 1, marks=pytest.mark.soak),
        (16, 1, {}, 0),
        (1, 2, {}, 4),
        pytest.param(2, 2, {}, 2, marks=pytest.mark.soak),
        (1, 1, {"control_variate": "independent"}, 4),
        (1, 1, {"control_variate": "full-batch"}, 7),
        (1, 1, {"evaluator": {"name": "in-forward", "flush_every": 3}}, 2),
        (1, 1, {"anchor_directions": "per-example"}, 0),
        (1, 1, {"directions": "per-example", "anchor_directions": "shared"}, 2),
        (1, 1, {"directions": "per-example", "anchor_directions": "shared", "batch_size": N}, 1),
        (4, 1, {"directions": "per-example", "anchor_directions": "shared", "batch_size": N}, 0),
    ],
)
def test_how_many_minibatch_steps_it_is_exact_for_follows_from_the_columns(rank, directions, options, exact):
    """As docs/methods.md says: until `flush_every` updates wait, or more than 8 columns of factors; and not where what
    waits has more than 32 with what is asked for."""
    noise = {"name": "low-rank", "rank": rank}
    given = {"noise": noise, "num_directions": directions, "anchor_interval": 20, **options}
    method, _ = trained(dtype=torch.bfloat16, steps=0, **given)
    anchor, kept = method.backbone.fingerprint(), []
    ask = method._anchored._anchor.losses

    def asked(*where):
        found = ask(*where)
        kept.append(method.backbone.fingerprint() == anchor)
        return found

    method._anchored._anchor.losses = asked
    for step in range(exact + 3):  # the first one is the anchor's own
        method.step(step)
    assert kept == [True] * exact + [False, False]


@pytest.mark.parametrize("q", with_soak([5, 7, 24], {5, 24}))
def test_in_bfloat16_weights_stay_as_close_to_those_beside_a_copy_as_rounding_lets_them(q):
    """A copy has the updates written in every step, the displacement now and then. Each time, stochastic rounding moves
    an entry by at most one ulp, with mean 0 and a standard deviation of at most half of one, so that n independent
    roundings leave a distance of sqrt(n) / 2 times the norm of the ulps."""
    start, one, other = (
        trained(dtype=torch.bfloat16, estimator={"epsilon": 1e-2}, anchor_interval=q, **options)[0]
        for options in ({"steps": 0}, {"steps": 25}, {"steps": 25, "anchor": "copy"})
    )
    before, here, there = weights_of(start), weights_of(one), weights_of(other)
    assert one.backbone.sweeps < 7
    assert other.backbone.sweeps == 25
    largest = torch.stack([before, here, there]).abs().amax(0)
    ulps = 2.0 ** (largest.log2().floor() - 7)
    assert (here - there).norm() < math.sqrt(one.backbone.sweeps + other.backbone.sweeps) / 2 * ulps.norm()
    assert (there - before).norm() > 5 * (here - there).norm()
    assert validation_loss(one) == pytest.approx(validation_loss(other), abs=0.02)


# memory


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive: those it is given, and what every operation makes."""

    def __init__(self, tensors):
        super().__init__()
        self._known, self._most, self.peak = {}, 0, 0
        self._saw(tensors)

    def _saw(self, made):
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                    self._most += storage.nbytes()

    @property
    def now(self):
        self._known = {at: known for at, known in self._known.items() if not known[0].expired()}
        self._most = sum(size for _, size in self._known.values())
        return self._most

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        self._saw(made)
        if self._most > self.peak:
            self.peak = max(self.peak, self.now)
        return made


WIDE, LAYERS, BLOCK = 512, 3, 1 << 13
WEIGHTS = LAYERS * WIDE * WIDE * 4


def live_bytes(name, steps=4, **options):
    """Bytes that are alive after four steps, the last of which sets an anchor, and at the worst moment of them."""
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDE, WIDE, bias=False) for _ in range(LAYERS)))
    for parameter in model.parameters():
        parameter.requires_grad_(False).copy_(torch.randn(WIDE, WIDE, generator=draw) / WIDE**0.5)
    rows = list(torch.randn(N, WIDE, generator=draw))
    context = TrainingContext(model, lambda m, x: m(x).square().mean(-1), rows, torch.stack, SEED)
    kind = METHODS[name]
    method = kind(kind.Config.model_validate({"batch_size": BATCH, "rule": {"lr": 1e-5}, **options}), context)
    gc.collect()  # what earlier tests left would be taken for what is let go here
    with Live([*model.parameters(), *rows]) as live:
        for step in range(steps):
            method.step(step)
    return live.now, live.peak


@pytest.mark.parametrize(
    "parts",
    [pytest.param(IN_PLACE, marks=pytest.mark.soak, id="in place"), pytest.param(IN_FORWARD, id="in the forward")],
)
def test_a_displaced_anchor_takes_the_memory_of_mezo_and_a_copy_the_weights_once_more(monkeypatch, parts):
    """Of tensors, exactly; what a process takes beside them is in docs/measured-details.md.

    In the forward both hold the factors of up to eight keys, which for these matrices are 1/256 of the weights each.
    Blocks of a sweep are as much smaller than the weights as they are for models of millions.
    """
    monkeypatch.setattr("zofo.backbone.backbone._CPU_BLOCK", BLOCK)
    monkeypatch.setattr("zofo.backbone.backbone._DEVICE_BLOCK", BLOCK)
    live_bytes("mezo", steps=1, **parts)  # tables that are made once in a process
    held, peak = live_bytes("mezo", **parts)
    displaced, copied = (
        live_bytes("svrg", anchor=anchor, anchor_interval=3, **parts) for anchor in ("displacement", "copy")
    )
    few = 0 if parts is IN_PLACE else 8 * WEIGHTS // 256
    assert displaced[0] <= held + few
    assert displaced[1] <= 1.05 * peak
    assert abs(copied[0] - held - WEIGHTS) <= few
    assert copied[1] >= peak + 0.95 * WEIGHTS
    assert copied[0] > 1.9 * held


# at the anchor itself


@pytest.mark.promise(4)
@pytest.mark.parametrize("anchor", ["displacement", "copy"])
@pytest.mark.parametrize("directions", ["shared", "per-example"])
def test_there_the_pair_cancels_and_v_is_g_bit_for_bit(anchor, directions):
    parts = {"anchor": anchor, "directions": directions, **IN_FORWARD}
    g = -build(LeastSquares(), lr_full=1.0, **parts).step(0).update.displacement
    method = build(LeastSquares(), lr_full=0.0, rule={"lr": 2.0**-8}, **parts)
    assert len(method.step(0).update.displacement) == 0
    displacement = method.step(1).update.displacement
    assert len(displacement) == (1 if directions == "shared" else N)
    assert displacement == -(2.0**-8) * g


def test_in_place_it_cancels_up_to_rounding_and_with_another_z_not_at_all():
    def beside_g(pair, dtype):
        method = build(LeastSquares(dtype=dtype), control_variate=pair, lr_full=0.0, rule={"lr": 1e-6})
        method.step(0)
        v = method.step(1).update.displacement / -1e-6
        return max((abs(c) for key, c in v.items() if key.step == 1), default=0.0)

    assert beside_g("same", torch.float64) < 1e-9
    assert beside_g("same", torch.float32) < 1e-2
    assert beside_g("independent", torch.float64) > 1.0


# its batch


@pytest.mark.parametrize("parts", [IN_PLACE, IN_FORWARD, {**IN_FORWARD, "directions": "per-example"}], ids=str)
@pytest.mark.parametrize("length", [None, lambda i: i % 3], ids=["as drawn", "by length"])
def test_chunks_of_any_size_give_the_same_gradient(parts, length):
    first, *others = (
        build(LeastSquares(), anchor_chunk=chunk, length=length, **parts).step(0) for chunk in (None, 1, 5, 11, 12, 99)
    )
    assert len(first.update.displacement) == (N if "directions" in parts else 1)
    for log in others:
        assert dict(log.update.displacement.items()) == pytest.approx(dict(first.update.displacement.items()), rel=1e-8)
        assert log.loss == pytest.approx(first.loss, rel=1e-12)
        assert log.counts.queries == 2 * N


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-2), (torch.float64, 1e-9)], ids=str)
def test_so_it_is_with_a_language_model(dtype, close):
    """In float32 up to the rounding of the losses, which a slope divides by 2 epsilon."""
    logs = [trained(dtype=dtype, steps=1, anchor_chunk=chunk)[1][0] for chunk in (None, 1, 5, 12)]
    slopes = logged(logs, "projected_gradient_full")
    assert (slopes - slopes[0]).abs().max() < close
    assert slopes[0].abs() > 0.1
    assert [log.counts.forwards for log in logs] == [3, 12, 3, 1]


def anchor_samples(seed=SEED, steps=6, **options):
    """The examples of each full-batch step, and of each minibatch step; and where theta ends."""
    drawn = [[]]

    def make(ids):
        drawn[-1].extend(ids)
        return torch.tensor(ids)

    config = SVRGConfig(batch_size=BATCH, rule={"lr": LR}, **IN_PLACE, **options)
    method = SVRG(config, TrainingContext(LeastSquares(), lambda m, ids: m(ids), list(range(N)), make, seed))
    drawn.clear()
    for step in range(steps):
        drawn.append([])
        method.step(step)
    return drawn[::2], drawn[1::2], theta_of(method)


def test_a_fixed_sample_is_the_same_at_every_anchor_and_a_fresh_one_is_not():
    fixed, _, _ = anchor_samples(anchor_batch_size=7, anchor_chunk=3)
    fresh, _, _ = anchor_samples(anchor_batch_size=7, anchor_chunk=3, anchor_sample="fresh")
    assert all(len(sample) == len(set(sample)) == 7 for sample in (*fixed, *fresh))
    assert fixed[0] == fixed[1] == fixed[2]
    assert len({frozenset(sample) for sample in fresh}) == 3
    assert anchor_samples(seed=2, anchor_batch_size=7)[0][0] != fixed[0]
    assert anchor_samples(anchor_batch_size=7, anchor_sample="fresh")[0] == fresh


def test_minibatch_steps_alone_draw_batches_and_an_epoch_of_them_sees_each_example_once():
    _, minibatches, _ = anchor_samples(steps=12)
    for epoch in (minibatches[:3], minibatches[3:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(N))


@pytest.mark.parametrize("sample", ["fixed", "fresh"])
def test_an_anchor_batch_of_all_examples_is_the_full_batch(sample):
    whole, _, theta = anchor_samples(anchor_batch_size=N, anchor_sample=sample)
    full, _, same = anchor_samples()
    assert whole == full == [list(range(N))] * 3
    assert torch.equal(theta, same)


# losses that are not finite, and interrupts

BOTH = pytest.mark.parametrize("parts", [IN_PLACE, IN_FORWARD], ids=["in place", "in the forward"])


class Spoiler:
    """A scale of the loss that does something else on one call, counted from 0."""

    def __init__(self, call, instead=lambda: math.nan):
        self.call, self.made, self.instead = call, -2, instead  # the method asks once when it is built

    def __call__(self):
        self.made += 1
        return self.instead() if self.made == self.call else 1.0


def assert_close(theta, expected):
    torch.testing.assert_close(theta, expected, rtol=1e-13, atol=1e-13)


def slope(method, theta, step, ids):
    z = written_out(method.backbone, Displacement({Key(SEED, step): 1.0}))
    return pytest.approx((LeastSquares().gradients(theta, ids).mean(0) @ z).item(), rel=1e-6)


@BOTH
@pytest.mark.parametrize("anchor", ["displacement", "copy"])
@pytest.mark.parametrize("failing", [0, 2], ids=["the first", "a later one"])
def test_a_full_step_that_fails_moves_nothing_and_is_made_again(parts, anchor, failing):
    visits = 2 if parts is IN_PLACE else 1
    before = (3 + 2) * visits if failing else 0  # forwards of steps 0 and 1
    spoiler = Spoiler(before + 3 * visits - 1)
    method = build(LeastSquares(), spoiler, anchor=anchor, anchor_interval=2, **parts)
    for step in range(failing):
        method.step(step)
    there, batches = theta_of(method), training_context(LeastSquares()).batches(BATCH, "train")
    with pytest.raises(NonFiniteError, match=f"step {failing}: non-finite loss nan"):
        method.step(failing)
    assert_close(theta_of(method), there)
    again = method.step(failing + 1).coefficients  # where a minibatch step would be
    assert again["projected_gradient_full_0"] == slope(method, there, failing + 1, torch.arange(N))
    assert "projected_gradient_full_0" in method.step(failing + 2).coefficients
    there = theta_of(build_to(failing + 2, failing, parts, anchor))
    anchored = method.step(failing + 3).coefficients["projected_gradient_anchor_0"]
    assert anchored == slope(method, there, failing + 3, batches[failing // 2 + 1])


def build_to(steps, failed, parts, anchor):
    """The same method before step number `steps`, without the step that failed."""
    method = build(LeastSquares(), anchor=anchor, anchor_interval=2, **parts)
    for step in range(failed):
        method.step(step)
    method._anchored.full = None
    for step in range(failed + 1, steps):
        method.step(step)
    return method


@BOTH
@pytest.mark.parametrize("anchor", ["displacement", "copy", "offload"])
def test_a_minibatch_step_that_fails_moves_nothing_and_the_anchor_stays(parts, anchor):
    visits = 2 if parts is IN_PLACE else 1
    asked = 2 * visits  # forwards of a minibatch step
    batches = training_context(LeastSquares()).batches(BATCH, "train")
    for spoiled in range(asked):  # around the anchor, or around theta
        method = build(LeastSquares(), Spoiler(3 * visits + asked + spoiled), anchor=anchor, **parts)
        start = theta_of(method)
        method.step(0)
        method.step(1)
        before = theta_of(method)
        with pytest.raises(NonFiniteError, match="step 2: non-finite loss nan"):
            method.step(2)
        assert_close(theta_of(method), before)
        coefficients = method.step(3).coefficients
        assert coefficients["projected_gradient_0"] == slope(method, before, 3, batches[2])
        assert coefficients["projected_gradient_anchor_0"] == slope(method, start, 3, batches[2])


@BOTH
@pytest.mark.parametrize("rule", ["sgd", "momentum"])
def test_a_released_step_whose_second_visit_fails_takes_its_first_move_back(parts, rule):
    """And what the rule remembers of it: the next step is that of a run that never made it."""
    visits, rule = 2 if parts is IN_PLACE else 1, {"name": rule, "lr": LR}
    last_of_step_2 = (3 + 2 + 2) * visits - 1
    method = build(LeastSquares(), Spoiler(last_of_step_2), control_variate="as-released", rule=rule, **parts)
    plain = build(LeastSquares(), control_variate="as-released", rule=rule, **parts)
    for step in (0, 1):
        assert method.step(step) == plain.step(step)
    with pytest.raises(NonFiniteError, match="step 2: non-finite loss nan"):
        method.step(2)
    assert_close(theta_of(method), theta_of(plain))
    one, other = method.step(3).update.displacement, plain.step(3).update.displacement
    assert dict(one.items()) == pytest.approx(dict(other.items()), rel=1e-8)


def interrupt():
    raise KeyboardInterrupt


@BOTH
@pytest.mark.parametrize("anchor", ["copy", "offload"])
def test_an_interrupt_at_the_anchor_brings_theta_back(parts, anchor):
    visits = 2 if parts is IN_PLACE else 1
    method = build(LeastSquares(), Spoiler(5 * visits, interrupt), anchor=anchor, **parts)
    method.step(0)
    method.step(1)
    before = theta_of(method)
    with pytest.raises(KeyboardInterrupt):
        method.step(2)
    assert not method.backbone.is_corrupt
    assert_close(theta_of(method), before)


# exchanging the weights with a copy


class Odd(nn.Module):
    """Tensors that are tied, transposed, strided, of no axis, or empty."""

    def __init__(self, dtype):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.plain = nn.Parameter(torch.randn(3, 5, generator=draw).to(dtype))
        self.tied = self.plain
        self.transposed = nn.Parameter(torch.randn(4, 3, generator=draw).to(dtype).T)
        self.strided = nn.Parameter(torch.randn(6, 4, generator=draw).to(dtype)[:, ::2])
        self.number = nn.Parameter(torch.randn((), generator=draw).to(dtype))
        self.empty = nn.Parameter(torch.zeros(0, 2, dtype=dtype))
        self.sames = nn.Linear(3, 5, dtype=dtype)
        self.sames.weight = self.plain


def bits(tensors):
    return {name: tensor.contiguous().flatten().view(torch.uint8).tolist() for name, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_exchange_swaps_and_a_second_one_undoes_it_bit_for_bit(dtype):
    model = Odd(dtype)
    backbone = Backbone(model, Gaussian())
    assert list(backbone.tensors) == ["plain", "transposed", "strided", "number", "sames.bias"]
    draw = torch.Generator().manual_seed(4)
    stored = {name: torch.randn(t.shape, generator=draw).to(dtype) for name, t in backbone.tensors.items()}
    odd = torch.tensor([torch.nan, torch.inf, -0.0, torch.finfo(dtype).smallest_normal / 2], dtype=dtype)
    stored["plain"][0, :4] = odd
    places = {name: tensor.data_ptr() for name, tensor in backbone.tensors.items()}
    here, there = bits(backbone.tensors), bits(stored)
    backbone.swap_(stored)
    assert (bits(backbone.tensors), bits(stored)) == (there, here)
    assert model.tied is model.plain is model.sames.weight
    backbone.swap_(stored)
    assert (bits(backbone.tensors), bits(stored)) == (here, there)
    assert {name: tensor.data_ptr() for name, tensor in backbone.tensors.items()} == places
    assert not backbone.is_corrupt
    assert backbone.sweeps == 0


def test_an_exchange_works_through_blocks(monkeypatch):
    monkeypatch.setattr("zofo.backbone.backbone._DEVICE_BLOCK", 4)
    test_an_exchange_swaps_and_a_second_one_undoes_it_bit_for_bit(torch.bfloat16)


def test_an_exchange_moves_no_tensor_that_was_not_selected():
    model = Odd(torch.float32)
    backbone = Backbone(model, Gaussian(), ["transposed"])
    before = model.plain.detach().clone()
    backbone.swap_({"transposed": torch.zeros(3, 4)})
    assert torch.equal(model.plain, before)
    assert not model.transposed.any()


def test_an_interrupted_exchange_is_never_silent():
    class Interrupting(dict):
        def __getitem__(self, name):
            if name == "strided":
                raise KeyboardInterrupt
            return super().__getitem__(name)

    backbone = Backbone(Odd(torch.float32), Gaussian())
    stored = {name: torch.zeros(tensor.shape) for name, tensor in backbone.tensors.items()}
    with pytest.raises(KeyboardInterrupt):
        backbone.swap_(Interrupting(stored))
    assert backbone.is_corrupt
    for use in (lambda: backbone.swap_(stored), lambda: backbone.apply_(Displacement({Key(0, 0): 1.0}))):
        with pytest.raises(ModelError, match="in the middle of a sweep") as refused:
            use()
        assert refused.value.hint == "load the model again"
