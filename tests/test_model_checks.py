"""What is found out about a model before its first step, and asserted at every later one: both evaluators."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import zofo
from zofo.backbone import Backbone, leaving_out, matching
from zofo.displacement import Displacement, Key
from zofo.errors import ConfigError, EvaluatorError, ModelError
from zofo.evaluators import InForward, InPlace
from zofo.methods.first_order import FirstOrder, FirstOrderConfig
from zofo.noise import LowRank
from zofo.training.resume import begun_selection

EVALUATORS = {"in-forward": InForward, "in-place": InPlace}
both = pytest.mark.parametrize("evaluator", EVALUATORS)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss(model, x):
    return (model(x).flatten(1) - 0.3).square().mean(1)


class Module(nn.Module):
    """A module that is a function of its parts and its input."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make().eval()


def build(name, module, trainable=None):
    return EVALUATORS[name](module, Backbone(module, LowRank(), trainable))


def method_of(module, evaluator="in-forward", batch=None, objective=loss, **options):
    batch = randn(8, 6) if batch is None else batch
    config = zofo.MeZOConfig(batch_size=4, evaluator={"name": evaluator}, rule={"name": "sgd", "lr": 1e-2}, **options)
    examples = list(range(len(batch)))
    return zofo.MeZO(
        config, zofo.TrainingContext(module, objective, examples, collate=lambda i: batch[torch.tensor(i)])
    )


def agrees(evaluator, batch):
    points = [Displacement({Key(11, 3): 1e-2}), Displacement({Key(11, 3): -1e-2})]
    own = [[Displacement({Key(11, 4, i): size}) for i in range(len(batch))] for size in (1e-2, -1e-2)]
    in_place = InPlace(*copy.deepcopy((evaluator.model, evaluator.backbone)))
    expected = in_place.losses(loss, batch, points)
    each = [[in_place.losses(loss, batch[i : i + 1], [at])[0] for i, at in enumerate(point)] for point in own]
    torch.testing.assert_close(evaluator.losses(loss, batch, points), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        evaluator.losses(loss, batch, own), torch.stack([torch.cat(row) for row in each]), rtol=1e-5, atol=1e-6
    )


# rows that stand elsewhere: exact, of one point at a time


def biased(m, x):
    i = torch.arange(x.shape[1])
    bias = m.table((i[None] - i[:, None] + 16).clamp(0, 31))[..., 0]
    return (m.q(x) @ x.mT + bias).softmax(-1) @ x


def routed(m, x):
    tokens, out = x.reshape(-1, 6), torch.zeros(x.shape[0] * x.shape[1], 6)
    chosen = (tokens.sum(1) > 0).long()
    for number, expert in enumerate(m.experts):
        place = (chosen == number).nonzero().flatten()
        if len(place):
            out[place] = expert(tokens[place])
    return out.view(x.shape)


def time_first(m, x):
    return m.l(x.transpose(0, 1).reshape(-1, 6)).view(x.shape[1], x.shape[0], -1).transpose(0, 1)


def small(m, x):
    return time_first(m, x) * 1e-6 + 1


def grouped(m, x):
    order = torch.arange(len(x)).view(-1, 1) if len(x) % 2 else torch.arange(len(x)).view(2, -1).T
    back = order.reshape(-1).argsort()
    return m.l(x[order.reshape(-1)])[back]


def linear():
    return {"l": nn.Linear(6, 6)}


ELSEWHERE = {
    "relative bias": (biased, lambda: {"q": nn.Linear(6, 6), "table": nn.Embedding(32, 1)}),
    "experts": (routed, lambda: {"experts": nn.ModuleList(nn.Linear(6, 6) for _ in range(2))}),
    "time first, flat": (time_first, linear),
    "time first, of little effect": (small, linear),
    "time first": (lambda m, x: m.l(x.transpose(0, 1)).transpose(0, 1), linear),
    "rows in another order": (grouped, linear),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
@pytest.mark.parametrize("length", [3, 4, 8, 12])
def test_modules_whose_rows_stand_elsewhere_are_run_once_a_point_whatever_the_length(kind, length):
    function, parts = ELSEWHERE[kind]
    module = seeded(lambda: Module(function, **parts()))
    evaluator = build("in-forward", module)
    evaluator.check([(loss, randn(4, length, 6))])
    assert evaluator.per_point.names or kind == "relative bias"
    for examples in (4, 5):
        agrees(evaluator, randn(examples, length, 6))


class Switched(nn.Module):
    """Asks its table in another way when the batch is of another length than the one that was checked."""

    def __init__(self, later):
        super().__init__()
        self.l, self.later = nn.Linear(6, 6), later

    def forward(self, x):
        return self.later(self, x) if x.shape[1] != 3 else self.l(x)


@pytest.mark.parametrize("rows", [4, 8])
def test_a_form_that_only_a_later_batch_has_is_checked_on_that_batch(rows):
    def flat(m, x):
        return m.l(x.reshape(-1, 6)).view(x.shape)

    for later in (flat, time_first):
        module = seeded(lambda later=later: Switched(later))
        evaluator = build("in-forward", module)
        evaluator.check([(loss, randn(4, 3, 6))])
        before = evaluator.counts.forwards
        agrees(evaluator, randn(rows, 8, 6))
        assert evaluator.counts.forwards - before == 2
        assert bool(evaluator.per_point.names) == (later is time_first)


def test_a_table_of_one_position_in_the_check_is_not_taken_for_one_that_is_shared():
    """[L, L] is [1, 1] for an example of one token, and [8, 8] at a later step of eight rows."""
    module = seeded(lambda: Module(biased, q=nn.Linear(6, 6), table=nn.Embedding(32, 1)))
    evaluator = build("in-forward", module, ["table.*"])
    evaluator.check([(loss, randn(4, 1, 6))])
    agrees(evaluator, randn(4, 8, 6))


def test_a_module_that_sorts_tokens_at_a_later_batch_is_run_once_a_point_from_then_on():
    """Two experts take as many tokens as there are rows, and others than one of each row."""
    module = seeded(lambda: Module(routed, experts=nn.ModuleList(nn.Linear(6, 6) for _ in range(2))))
    evaluator = build("in-forward", module)
    evaluator.check([(loss, randn(4, 2, 6).abs())])  # one expert takes all of them, in their order
    agrees(evaluator, randn(6, 2, 6).abs())
    assert not evaluator.per_point.names
    agrees(evaluator, torch.cat([randn(2, 2, 6).abs(), -randn(2, 2, 6).abs()]))
    assert evaluator.per_point.names
    again = build("in-forward", module)
    again.load_state_dict(evaluator.state_dict())  # a run that goes on knows
    assert again.per_point.names == evaluator.per_point.names
    again.load_state_dict(evaluator.state_dict())  # and no more of them, whatever it has found by itself
    assert again.per_point.names == evaluator.per_point.names


@pytest.mark.parametrize("length", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [1, 2, 4, 7])
def test_rows_that_stand_first_agree_at_every_length_and_number(rows, length):
    def forward(m, x):
        positions = m.p(torch.arange(x.shape[1])[None])
        return m.n(m.l((x + positions).reshape(-1, 6))).view(x.shape)

    module = seeded(lambda: Module(forward, l=nn.Linear(6, 6), n=nn.LayerNorm(6), p=nn.Embedding(8, 6)))
    evaluator = build("in-forward", module)
    evaluator.check([(loss, randn(4, 3, 6))])
    agrees(evaluator, randn(rows, length, 6))


# memory that is shared


def tied(make):
    def build():
        module = Module(lambda m, x: m.b(m.a(x).tanh()), a=nn.Linear(6, 6, bias=False), b=nn.Linear(6, 6, bias=False))
        module.b.weight = nn.Parameter(make(module.a.weight.data))
        return module

    return build


SHARED = {
    "transposed": tied(lambda w: w.t()),
    "rows": tied(lambda w: w[2:]),
    "columns": tied(lambda w: w[:, :3]),
    "another shape": tied(lambda w: w.view(4, 9)),
    "another stride": tied(lambda w: w[::2]),
    "as_strided": tied(lambda w: w.as_strided((5, 5), (6, 1), 7)),
    "another dtype": tied(lambda w: w.view(torch.float16)),
}


@both
@pytest.mark.parametrize("kind", SHARED)
def test_tensors_that_share_memory_under_another_form_are_refused_by_name(kind, evaluator):
    with pytest.raises(ModelError, match=r"'a\.weight' and 'b\.weight' share memory") as caught:
        method_of(seeded(SHARED[kind]), evaluator)
    assert '["*", "!b.weight"]' in caught.value.hint


def test_first_order_steps_refuse_shared_memory_too():
    config = FirstOrderConfig(name="first-order", parameters="all", batch_size=4)
    context = zofo.TrainingContext(
        seeded(SHARED["rows"]), loss, list(range(8)), collate=lambda i: randn(8, 6)[torch.tensor(i)]
    )
    with pytest.raises(ModelError, match="share memory"):
        FirstOrder(config, context)


def test_a_tensor_that_holds_a_number_several_times_is_refused():
    module = nn.Linear(6, 4)
    module.weight = nn.Parameter(torch.randn(1, 6).expand(4, 6))
    with pytest.raises(ModelError, match="'weight' holds the same numbers several times"):
        Backbone(module, LowRank())


def test_slices_of_one_storage_that_do_not_meet_move_each_by_itself():
    module = nn.ParameterDict()
    whole = randn(6, 6)
    module["left"], module["right"] = nn.Parameter(whole[:, :3]), nn.Parameter(whole[:, 3:])
    module["same"] = nn.Parameter(whole[:, :3])  # tied
    assert list(Backbone(module, LowRank()).tensors) == ["left", "right"]


@both
def test_a_model_without_numbers_is_named_as_that(evaluator):
    with torch.device("meta"):
        meta = nn.Linear(6, 4)
    with pytest.raises(ModelError, match="on the meta device"):
        method_of(meta, evaluator)
    with pytest.raises(ModelError, match="has no shape until the model has run"):
        method_of(nn.LazyLinear(4), evaluator)


# tensors that stay


def movement(method, steps=3):
    before = {name: value.clone() for name, value in method.model.state_dict().items()}
    method.check()
    for step in range(steps):
        method.step(step)
    with method.using("model"):
        after = method.model.state_dict()
        return {name for name, value in before.items() if not torch.equal(value, after[name])}


def towers():
    return Module(lambda m, x: m.text(x), text=nn.Linear(6, 4), vision=nn.Sequential(nn.Linear(9, 9), nn.LayerNorm(9)))


@both
def test_what_no_forward_uses_stays_and_is_counted(evaluator):
    method = method_of(seeded(towers), evaluator)
    (note,) = method.notes()
    assert "4 tensors that no forward uses (108 numbers)" in note
    assert method.replay_header()["trainable"] == ["text.weight", "text.bias"]
    assert movement(method) == {"text.weight", "text.bias"}
    named = method_of(seeded(towers), evaluator, trainable=["text.*", "vision.0.*"])
    assert not named.notes()
    assert named.replay_header()["trainable"] == ["text.*", "vision.0.*"]
    assert movement(named) == {"text.weight", "text.bias", "vision.0.weight", "vision.0.bias"}


@both
def test_what_requires_no_gradient_stays_unless_it_is_named(evaluator):
    def half():
        module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
        module[0].requires_grad_(False)
        return module

    for select in (None, ["*"]):
        method = method_of(seeded(half), evaluator, trainable=select)
        assert "2 tensors with requires_grad=False (42 numbers)" in method.notes()[0]
        assert method.replay_header()["trainable"] == ["1.weight", "1.bias"]
        assert movement(method) == {"1.weight", "1.bias"}
    assert len(movement(method_of(seeded(half), evaluator, trainable=["0.*", "1.weight"]))) == 3
    assert list(Backbone(half(), LowRank()).tensors) == ["1.weight", "1.bias"]
    assert len(Backbone(half().requires_grad_(False), LowRank()).tensors) == 4  # where the flag chooses nothing


@both
def test_experts_that_the_first_examples_do_not_reach_move_all_the_same(evaluator):
    parts = {"experts": nn.ModuleList(nn.Linear(6, 6) for _ in range(4))}
    method = method_of(seeded(lambda: Module(routed, **parts)), evaluator, batch=randn(8, 3, 6).abs())
    assert not method.notes()
    assert len(method.backbone.tensors) == 8


def test_branches_that_numbers_decide_between_are_used():
    def branch(m, x):
        return m.a(x) if x.sum() > 0 else m.b(x)

    module = seeded(lambda: Module(branch, a=nn.Linear(6, 6), b=nn.Linear(6, 6), vision=nn.Linear(9, 9)))
    method = method_of(module)
    assert set(method.backbone.tensors) == {"a.weight", "a.bias", "b.weight", "b.bias"}


def test_a_model_whose_parts_are_all_used_keeps_its_header():
    assert method_of(seeded(lambda: nn.Linear(6, 4))).replay_header()["trainable"] is None


def test_a_run_goes_on_with_the_tensors_that_it_began_with():
    """One that an older version began moves all, used or not."""
    for stored, moves in ((None, 6), (["text.*"], 2)):
        method = method_of(seeded(towers), **begun_selection({"trainable": stored}, towers()))
        assert len(method.backbone.tensors) == moves
        assert not method.notes()
    assert begun_selection({"trainable": ["gone.*"]}, towers()) == {}
    assert begun_selection(None, towers()) == {}


# selections


def test_a_selection_can_leave_out():
    names = ["a.0.weight", "a.0.bias", "a.1.weight", "head"]
    assert matching(names, ["*", "!*.bias"]) == ["a.0.weight", "a.1.weight", "head"]
    assert matching(names, ["!a.*"]) == ["head"]
    assert matching(names, ["!a.0.*", "a.*"]) == ["a.1.weight"]
    for wrong in (["*", "!b.*"], ["b.*"], ["*", "!*"], []):
        with pytest.raises(ConfigError, match="matches none of|leave none of|nothing would be trained"):
            matching(names, wrong)
    assert list(Backbone(nn.Linear(6, 4), LowRank(), ["*", "!bias"]).tensors) == ["weight"]


def test_what_is_proposed_to_leave_a_tensor_out_does_so():
    said = leaving_out("model.layers.3.mlp.weight")
    assert json.loads(said.split("method.trainable=")[1].split("'")[0]) == ["*", "!model.layers.*.mlp.weight"]
    module = Module(
        lambda m, x: m.l(x) + F.linear(x, torch.Tensor(m.w)), l=nn.Linear(6, 4), w=nn.Parameter(randn(4, 6))
    )
    with pytest.raises(EvaluatorError, match="'w'") as caught:
        method_of(module).check()
    proposed = json.loads(caught.value.hint.split("method.trainable=")[1].split("'")[0])
    method_of(module, trainable=proposed).check()


# what a model does to its own weights, and whatever it raises


@both
def test_a_model_that_writes_its_own_weights_is_refused_and_they_are_as_before(evaluator):
    module, ids = seeded(lambda: nn.Embedding(9, 4, max_norm=0.5)), torch.arange(8).view(8, 1)
    before = module.weight.clone()
    with pytest.raises(EvaluatorError, match=r"the model itself writes into 'weight' .*max_norm"):
        build(evaluator, module).check([(loss, ids)])
    assert torch.equal(module.weight, before)


def normed(m, x):
    m.l.weight.data = F.normalize(m.l.weight.data)
    return m.l(x)


@both
def test_a_model_that_gives_a_weight_other_memory_is_refused_and_it_is_as_before(evaluator):
    module = seeded(lambda: Module(normed, l=nn.Linear(6, 4)))
    before, place = module.l.weight.clone(), module.l.weight.data_ptr()
    with pytest.raises(EvaluatorError, match=r"the model itself writes into 'l\.weight'"):
        build(evaluator, module).check([(loss, randn(8, 6))])
    assert torch.equal(module.l.weight, before)
    assert module.l.weight.data_ptr() == place


@both
@pytest.mark.parametrize("function", [lambda m, x: F.dropout(m.l(x), 0.5), lambda m, x: m.l(x + torch.rand(6))])
def test_a_model_whose_losses_differ_from_one_run_to_the_next_is_refused(function, evaluator):
    module = seeded(lambda: Module(function, l=nn.Linear(6, 4)))
    with pytest.raises(EvaluatorError, match="differ from one run to the next, as with dropout") as caught:
        build(evaluator, module).check([(loss, randn(8, 6))])
    assert "model.eval()" in caught.value.hint


@both
def test_a_model_that_keeps_what_it_made_of_a_weight_is_refused(evaluator):
    def fused(m, x):
        if not hasattr(m, "kept"):
            m.kept = m.l.weight.data.clone()
        return F.linear(m.n(x), m.kept)

    module = seeded(lambda: Module(fused, l=nn.Linear(6, 4, bias=False), n=nn.LayerNorm(6)))
    with pytest.raises(EvaluatorError, match=r"keeps what its first forward made of 'l\.weight'"):
        build(evaluator, module).check([(loss, randn(8, 6))])
    assert not hasattr(module, "kept")


def changed(m, x):
    y = x * 1
    first = m.a(y)
    y.data.mul_(1.01)
    return first + m.b(y)


def through_numpy(m, x):
    y = x * 1
    first = m.a(y)
    y.numpy()[:] *= 1.01
    return first + m.b(y)


@pytest.mark.parametrize("function", [changed, through_numpy])
def test_a_change_that_torch_does_not_count_is_refused(function):
    module = seeded(lambda: Module(function, a=nn.Linear(6, 4), b=nn.Linear(6, 4)))
    with pytest.raises(EvaluatorError, match=r"changes what 'a\.weight' was multiplied by before 'b\.weight'"):
        build("in-forward", module).check([(loss, randn(8, 6))])


def scripted(m, x):
    return SCRIPT(x, m.l.weight)


def raising(m, x):
    if isinstance(m.l.weight, nn.Parameter) and type(m.l.weight) is not nn.Parameter:
        raise KeyError("no such\nweight")
    return m.l(x)


def gradient(m, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(m.l(x).tanh().sum(), x)[0]


def disabled(m, x):
    with torch._C.DisableTorchFunctionSubclass():
        return F.linear(x, m.l.weight)


def disabled_later(m, x):
    scale = 1 + m.l.bias
    with torch._C.DisableTorchFunctionSubclass():
        return x.sum(1, keepdim=True) * scale


def _script():
    import warnings

    def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, w)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(product)


SCRIPT = _script()


@pytest.mark.parametrize("function", [gradient, disabled_later])
def test_what_goes_past_torch_functions_with_the_moved_tensor_is_right(function):
    module = seeded(lambda: Module(function, l=nn.Linear(6, 4)))
    evaluator = build("in-forward", module)
    evaluator.check([(loss, randn(8, 6))])
    agrees(evaluator, randn(5, 6))


@pytest.mark.parametrize("function", [scripted, raising, disabled])
def test_whatever_a_model_raises_under_carried_terms_is_one_message(function):
    module = seeded(lambda: Module(function, l=nn.Linear(6, 4)))
    with pytest.raises(EvaluatorError) as caught:
        build("in-forward", module).check([(loss, randn(8, 6))])
    assert "\n" not in caught.value.message
    assert "method.evaluator=in-place" in caught.value.hint
    build("in-place", module).check([(loss, randn(8, 6))])


@both
def test_a_model_that_runs_in_no_way_is_said_to(evaluator):
    with pytest.raises(
        EvaluatorError, match="cannot be run on the first examples, with or without directions"
    ) as caught:
        build(evaluator, nn.Linear(5, 4)).check([(loss, randn(8, 6))])
    assert "in-place" not in caught.value.hint


def elsewhere(m, x):
    """Reads a tensor past all that looks on."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(F.linear, x, m.held[0]).result() + m.l.bias


def test_terms_that_do_not_do_what_moving_does_are_refused_and_the_weights_are_as_before():
    module = seeded(lambda: Module(elsewhere, l=nn.Linear(6, 4)))
    module.held, before = [module.l.weight.data], module.l.weight.clone()
    with pytest.raises(EvaluatorError, match="others than those with moved weights") as caught:
        build("in-forward", module).check([(loss, randn(8, 6))])
    assert "method.evaluator=in-place" in caught.value.hint
    assert torch.equal(module.l.weight, before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_runs_in_place():
    module = torch.jit.script(seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh())))
    build("in-place", module).check([(loss, randn(8, 6))])


# how far losses may be apart


def test_rows_that_influence_one_another_a_little_are_refused():
    module = seeded(lambda: Module(lambda m, x: m.l(x) + 1e-4 * m.l(x).mean(0), l=nn.Linear(6, 4)))
    with pytest.raises(EvaluatorError, match="depend on which rows share a batch"):
        build("in-forward", module).check([(loss, randn(8, 6))])


def in_large_batches(m, x):
    y = m.l(x)
    return y - y.mean(0) if len(y) > 8 else y


def of_limited_room(m, x):
    """Experts that take six tokens of a batch, first come, first served."""
    room = torch.zeros(len(x), 1)
    for expert in (True, False):
        room[((x.sum(1) > 0) == expert).nonzero().flatten()[:6]] = 1
    return x + room * m.l(x)


@pytest.mark.parametrize("function", [in_large_batches, of_limited_room])
def test_rows_that_influence_one_another_only_where_there_are_many_are_refused_at_the_first_step(function):
    module = seeded(lambda: Module(function, l=nn.Linear(6, 6)))
    before, method = module.l.weight.clone(), method_of(module, batch=randn(16, 6))
    method.check()
    asked = method.evaluator.losses(loss, randn(2, 6), [Displacement({Key(1, 1): size}) for size in (1e-3, -1e-3)])
    assert asked.shape == (2, 2)
    with pytest.raises(EvaluatorError, match="depend on which rows share a batch: among 32, one is another"):
        method.evaluator.losses(loss, randn(16, 6), [Displacement({Key(1, 1): size}) for size in (1e-3, -1e-3)])
    assert torch.equal(module.l.weight, before)


@pytest.mark.parametrize("influenced", [False, True])
def test_many_rows_are_compared_by_what_was_checked_and_not_by_a_reward(influenced):
    """F1 is of all rows of a point, and greedy answers turn over by rounding: neither says that rows mix."""
    function = in_large_batches if influenced else lambda m, x: m.l(x)
    evaluator = build("in-forward", seeded(lambda: Module(function, l=nn.Linear(6, 6))))
    evaluator.check([(loss, randn(8, 6))])
    points = [Displacement({Key(1, 1): size}) for size in (0.5, -0.5)]
    with pytest.raises(EvaluatorError, match="rows share a batch: among 32") if influenced else nullcontext():
        scores = evaluator.losses(lambda m, x: loss(m, x) * 0 + len(x), randn(16, 6), points)
        assert scores.eq(32).all()


@pytest.mark.parametrize(("share", "refused"), [(1.0, True), (0.0, False)])
def test_rounding_is_told_from_influence_by_a_nudge_of_the_points(share, refused):
    """Losses 5e-5 apart are refused in a model that rounds little, and pass in one that a nudge moves as much."""
    calls = iter(range(100))

    def apart(m, x):
        shift = share * len(x) if share else (next(calls) * 7919 % 11) / 5 * type(m.l.weight).__name__.startswith("_")
        return m.l(x) * (1 + 1e-5 * shift)

    module = seeded(lambda: Module(apart, l=nn.Linear(6, 4)))
    with pytest.raises(EvaluatorError, match="rows share a batch") if refused else nullcontext():
        build("in-forward", module).check([(loss, randn(8, 6))])


def test_trying_a_row_of_a_large_batch_alone_is_not_counted():
    evaluator = build("in-forward", seeded(lambda: nn.Linear(6, 6)))
    evaluator.check([(loss, randn(8, 6))])
    evaluator.losses(loss, randn(16, 6), [Displacement({Key(1, 1): size}) for size in (1e-3, -1e-3)])
    assert (evaluator.counts.forwards, evaluator.counts.queries) == (1, 32)


@both
def test_numbers_too_narrow_to_move_are_refused(evaluator):
    module = nn.Linear(6, 4)
    module.scale = nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ModelError, match=r"'scale' holds torch\.float8_e4m3fn numbers"):
        build(evaluator, module, ["weight", "scale"])


# tensors that no forward can carry


def half_hidden(m, x):
    with torch._C.DisableTorchFunctionSubclass():
        scale = 1 + m.s
    return m.l(x) * scale


def test_what_no_forward_carries_stays_is_refused_or_is_written():
    def method(width, **options):
        module = seeded(lambda: Module(half_hidden, l=nn.Linear(6, width), s=nn.Parameter(torch.zeros(1))))
        config = {"name": "in-forward", **options}
        steps = zofo.MeZOConfig(batch_size=4, evaluator=config, rule={"name": "sgd", "lr": 1e-2})
        batch = randn(8, 6)
        context = zofo.TrainingContext(module, loss, list(range(8)), collate=lambda i: batch[torch.tensor(i)])
        return zofo.MeZO(steps, context), module

    made, module = method(12)
    made.check()
    (note,) = made.notes()
    assert "1 tensors that no forward can carry (1.18% of the numbers) stay as they are: s;" in note
    assert made.trained_names == ("l.weight", "l.bias")
    assert made.replay_header()["trainable"] == ["l.weight", "l.bias"]
    made.step(0)
    made.evaluator.theta.flush()
    assert not module.s.any()
    for refused in (method(6)[0], method(12, uncarried="refuse")[0]):  # 1 of 43 numbers is more than 2 %
        with pytest.raises(EvaluatorError, match="uses 's'") as caught:
            refused.check()
        assert "method.evaluator.uncarried=in-place" in caught.value.hint
    made, module = method(6, uncarried="in-place")
    made.check()
    assert not made.notes()
    assert made.evaluator.written == {"s"}
    agrees(made.evaluator, randn(5, 6))
    assert not module.s.any()


# no trace


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.norm, self.calls = nn.Linear(6, 4), nn.BatchNorm1d(4, affine=False), 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        self.last = x
        torch.rand(1)
        numpy.random.rand()  # noqa: NPY002
        return self.norm(self.l(x))


@both
@pytest.mark.parametrize("training", [True, False], ids=["refused in the forward", "passed"])
def test_a_check_leaves_no_trace(training, evaluator):
    module = seeded(Stateful).train(training)
    evaluator = build(evaluator, module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random, numbers = torch.get_rng_state(), numpy.random.get_state()[1].copy()  # noqa: NPY002
    refused = training and isinstance(evaluator, InForward)  # batch normalisation takes no example alone
    with pytest.raises(EvaluatorError, match="one example at a time") if refused else nullcontext():
        evaluator.check([(loss, randn(8, 6))])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert (module.calls, module.training, hasattr(module, "last")) == (0, training, False)
    assert torch.equal(torch.get_rng_state(), random)
    assert (numpy.random.get_state()[1] == numbers).all()  # noqa: NPY002
    assert evaluator.counts.forwards == 0


@pytest.mark.parametrize("evaluator", ["in-forward", "in-place"])
def test_a_parameter_without_entries_has_nothing_to_move(evaluator):
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 1)
            self.empty = nn.Parameter(torch.zeros(0, 3))

        def forward(self, x):
            return self.a(x)

    method = method_of(seeded(Empty), evaluator)
    method.check()
    assert set(method.backbone.tensors) == {"a.weight", "a.bias"}


def test_a_cache_that_points_would_share_is_refused():
    """A state-space layer is run once for each point, and a generation would give all of them one state."""
    model = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)
    ).eval()
    evaluator = InForward(model, Backbone(model, LowRank()))
    ids = torch.randint(3, 50, (2, 6), generator=torch.Generator().manual_seed(0))

    def loss(model, ids):
        return model(ids, use_cache=False).logits.float().logsumexp(-1).mean(1)

    def length(model, ids):
        made = model.generate(ids, max_new_tokens=3, do_sample=False, use_cache=True, pad_token_id=0)
        return made[:, ids.shape[1] :].float().mean(1)

    evaluator.check([(loss, ids)])
    points = [Displacement({Key(0, 0): 0.1}), Displacement({Key(0, 0): -0.1})]
    with pytest.raises(EvaluatorError, match="a generation gives it one cache"):
        evaluator.losses(length, ids, points)
