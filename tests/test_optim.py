"""The optimizers: zofo's steps in a script of one's own, with what people expect of torch.optim."""

import copy
import os
import re
import signal
import warnings
from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import zofo
from conftest import build_model
from zofo.errors import CheckpointError, ConfigError, EvaluatorError, NonFiniteError, ZofoError
from zofo.methods import METHODS
from zofo.noise import Gaussian
from zofo.objectives import classification_loss
from zofo.optim import SVRG, MeZO
from zofo.training import read_config, train
from zofo.training.data_module import prepare_run, training_context
from zofo.training.run_logs import metrics_lines

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = X.sum(dim=1, keepdim=True)
EVALUATORS = ("from-copy", "in-place", "in-forward")


def network(dtype=torch.float32, *more):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), *more, nn.Linear(16, 1)).to(dtype)


def losses_of(model, rows=slice(None)):
    return lambda batch=(X[rows], Y[rows]): (
        (model(batch[0].to(next(model.parameters()).dtype)) - batch[1]).float()[:, 0] ** 2
    )


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model, kept):
    return all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


def stepped(optimizer, model, steps, first=0):
    """The losses of some steps, each on three rows."""
    given = []
    for step in range(first, first + steps):
        batch = X[step % 4 * 3 :][:3], Y[step % 4 * 3 :][:3]
        given.append(optimizer.step(losses_of(model), batch))
    return torch.stack(given)


@pytest.mark.parametrize(("evaluator", "exact"), [("in-place", True), ("in-forward", True), ("from-copy", False)])
def test_the_first_losses_are_those_of_zofo_train(model_folder, data_dir, tmp_path, evaluator, exact):
    where = {"name": evaluator, "flush_every": 1} if evaluator == "in-forward" else {"name": evaluator}
    config = read_config(
        model={"name": str(model_folder), "dtype": "float32"},
        task={"name": "sst2", "data_dir": str(data_dir)},
        method={"name": "mezo", "batch_size": 4, "lr": 1e-2, "evaluator": where},
        training={"steps": 20, "seed": 3, "lr_scheduler_type": "linear", "warmup_steps": 4},
        output_dir=tmp_path / "run",
    )
    logged = [line["loss"] for line in metrics_lines(train(config).metrics) if "projected_gradient_0" in line]
    prepared = prepare_run(config, False, ("train",))
    model = prepared.loaded.model
    batches = training_context(config, prepared, None).batches(4, "train")
    optimizer = MeZO(model, lr=1e-2, evaluator=evaluator, seed=3)
    scheduler = transformers.get_scheduler("linear", optimizer, 4, 20)
    found = []
    for step in range(20):
        optimizer.step(lambda batch: classification_loss(model, batch), batches[step])
        scheduler.step()
        found.append(optimizer.last_step.loss)
    assert len(logged) == 20
    assert logged[0] != logged[-1]
    assert found == logged if exact else found == pytest.approx(logged, abs=1e-6)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_it_learns_and_tells_what_it_did(evaluator):
    model = network()
    optimizer = MeZO(model, lr=3e-3, evaluator=evaluator, num_directions=2)
    losses = [optimizer.step(losses_of(model), (X, Y)).item() for _ in range(150)]
    assert losses[-1] < 0.5 * losses[0]
    assert optimizer.counts.queries == 150 * 4 * 12
    assert optimizer.last_step.counts.queries == 4 * 12
    assert list(optimizer.last_step.coefficients) == ["projected_gradient_0", "projected_gradient_1"]


def test_one_step_is_the_closed_form():
    model, epsilon, lr, decay = network(), 1e-3, 0.01, 0.1
    before, noise = bits(model), Gaussian()
    optimizer = MeZO(model, lr=lr, epsilon=epsilon, weight_decay=decay, noise="gaussian", seed=5)
    optimizer.step(losses_of(model))
    (slope,) = optimizer.last_step.coefficients.values()
    for name, tensor in model.named_parameters():
        z = noise.whole(zofo.Key(5, 0), name, tuple(tensor.shape))
        kept = 1 - lr * decay if name in ("0.weight", "3.weight") else 1
        torch.testing.assert_close(tensor.data, kept * before[name] - lr * slope * z, rtol=0, atol=1e-6)


RESUMED = {
    "sgd": (MeZO, {}),
    "momentum in the forward": (MeZO, {"momentum": 0.9, "evaluator": "in-forward"}),
    "adam in place": (MeZO, {"rule": "dense-adam", "evaluator": "in-place", "num_directions": 2}),
    "examples": (MeZO, {"directions": "per-example", "evaluator": "in-forward", "rule": "rms-sgd"}),
    "updates that wait": (MeZO, {"evaluator": {"name": "in-forward", "flush_every": 2}}),
    "svrg": (SVRG, {"anchor_interval": 3}),
    "svrg in the forward": (SVRG, {"anchor_interval": 3, "evaluator": "in-forward", "lr_full": 2e-3}),
    "svrg and a copy": (SVRG, {"anchor_interval": 3, "anchor": "copy", "weight_decay": 0.1}),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_it_goes_on_to_the_same_bits_from_a_small_state(kind, tmp_path):
    cls, options = RESUMED[kind]

    def built(model):
        anchor = {"anchor_closure": losses_of(model), "anchor_batches": [(X[:6], Y[:6]), (X[6:], Y[6:])]}
        optimizer = cls(model, lr=5e-3, seed=2, **options, **(anchor if cls is SVRG else {}))
        return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 20)

    def run(optimizer, scheduler, model, steps, first=0):
        given = []
        for step in range(first, first + steps):
            given += stepped(optimizer, model, 1, step).tolist()
            scheduler.step()
        return given

    whole = network()
    losses = run(*built(whole), whole, 9)
    model = network()
    optimizer, scheduler = built(model)
    first = run(optimizer, scheduler, model, 4)
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(states, tmp_path / "states.pt")
    loaded = torch.load(tmp_path / "states.pt", weights_only=True)
    other = network()
    optimizer, scheduler = built(other)
    other.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    scheduler.load_state_dict(loaded["scheduler"])
    assert first + run(optimizer, scheduler, other, 5, 4) == losses
    assert same(other, bits(whole))
    kept = loaded["optimizer"]["state"]["zofo"]["tensors"]
    assert bool(kept) == ("adam" in kind or "copy" in kind)  # and nothing as large as the weights in any other


def test_a_state_of_another_optimizer_is_refused():
    state = MeZO(network(), seed=1).state_dict()
    with pytest.raises(CheckpointError, match="seed=1, and this optimizer has 0"):
        MeZO(network()).load_state_dict(state)
    with pytest.raises(CheckpointError, match="with parameters="):
        MeZO(nn.Linear(2, 2), seed=1).load_state_dict(state)
    frozen = MeZO(network().requires_grad_(False), seed=1).state_dict()  # all of it moves
    with pytest.raises(CheckpointError, match="with parameters="):
        MeZO(nn.Linear(2, 2).requires_grad_(False), seed=1).load_state_dict(frozen)
    with pytest.raises(CheckpointError, match="no state of a MeZO"):
        MeZO(network()).load_state_dict(torch.optim.SGD(network().parameters(), lr=1.0).state_dict())


def test_schedulers_find_what_they_expect_and_warn_of_nothing():
    model = network()
    optimizer = MeZO(model, lr=4e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
        for _ in range(4):
            optimizer.step(losses_of(model))
            optimizer.zero_grad()
            scheduler.step()
    assert optimizer.param_groups[0]["initial_lr"] == 4e-3
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    before = bits(model)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(losses_of(model))
    assert same(model, before)
    assert MeZO(model).param_groups[0]["lr"] == 5e-5  # as `zofo train`
    assert MeZO(model.bfloat16())._zo.estimator.epsilon == 3e-3


# errors


class Fails:
    """A closure that does something else when it is called at one of the points."""

    def __init__(self, model, at, act):
        self.loss, self.at, self.act, self.calls = losses_of(model), at, act, 0

    def __call__(self, batch=(X, Y)):
        self.calls += 1
        return self.act(self.loss(batch)) if self.calls == self.at else self.loss(batch)


def raising(kind):
    def act(_losses):
        raise kind

    return act


FAULTS = {
    "error": (raising(ArithmeticError), ArithmeticError),
    "ctrl-c": (raising(KeyboardInterrupt), KeyboardInterrupt),
    "nan": (lambda losses: losses * float("nan"), NonFiniteError),
    "shape": (lambda losses: losses[:3], EvaluatorError),
}


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_any_error_in_a_closure_the_weights_have_their_bits_and_the_run_goes_on(fault, at, dtype):
    act, error = FAULTS[fault]
    runs = []
    for fails in (False, True):
        model = network(dtype)
        optimizer = MeZO(model, lr=0.02)
        optimizer.step(losses_of(model))
        before = bits(model)
        if fails:
            with pytest.raises(error):
                optimizer.step(Fails(model, at, act))
            assert same(model, before)
        optimizer.step(losses_of(model))
        assert not same(model, before)
        runs.append(bits(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("evaluator", ["in-forward", "in-place"])
def test_in_the_forward_nothing_was_written_and_in_place_it_is_off_by_rounding(evaluator):
    model = network()
    optimizer = MeZO(model, lr=0.02, evaluator=evaluator)
    optimizer.step(losses_of(model), (X, Y))
    before = bits(model)
    with pytest.raises(ArithmeticError):
        optimizer.step(Fails(model, 1, raising(ArithmeticError)), (X, Y))
    assert same(model, before) or evaluator == "in-place"
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=5e-7)


@pytest.mark.parametrize("evaluator", ["from-copy", "in-place"])
def test_ctrl_c_in_a_sweep_comes_after_it(evaluator, monkeypatch):
    model = network()
    optimizer = MeZO(model, evaluator=evaluator, lr=0.02)
    optimizer.step(losses_of(model))
    before, backbone, asked = bits(model), optimizer._zo.backbone, []
    write = type(backbone)._jobs

    def interrupted(self, *parts):
        if not asked:
            os.kill(os.getpid(), signal.SIGINT)
        asked.append(parts)
        return write(self, *parts)

    monkeypatch.setattr(type(backbone), "_jobs", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(losses_of(model))
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(asked) > 1
    assert not backbone.is_corrupt
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=5e-7)
    assert same(model, before) or evaluator == "in-place"


def backwards(model):
    def closure():
        loss = losses_of(model)().mean()
        loss.backward()
        return loss

    return closure


def drawing(model):
    rows = iter(range(100))
    return lambda: losses_of(model, [next(rows) % 12])()


def ending(model):
    rows = iter([[0, 1]] * 3)
    return lambda: losses_of(model, next(rows))()


def cut(model):
    next(model.parameters()).ds_id = 0  # as DeepSpeed marks what it has shared out
    return model


REFUSED = {
    "data that ends": (lambda m: MeZO(m).step(ending(m)), "the data ended while the closure drew a batch"),
    "shards": (lambda m: MeZO(cut(m)), "is cut into pieces over processes"),
    "no closure": (lambda m: MeZO(m).step(), "needs losses at several points"),
    "a loss": (lambda m: MeZO(m).step(losses_of(m)()), "the closure is Tensor"),
    "a copy": (lambda m: copy.deepcopy(MeZO(m)), "cannot be copied"),
    "backward": (lambda m: MeZO(m).step(backwards(m)), "calls backward"),
    "another batch each time": (lambda m: MeZO(m).step(drawing(m)), "differ from one run to the next"),
    "half losses": (lambda m: MeZO(m).step(lambda: losses_of(m)().bfloat16()), "gave bfloat16 losses"),
    "an output": (lambda m: MeZO(m).step(lambda: {"loss": 1}), "gave dict, and no losses"),
    "a matrix": (lambda m: MeZO(m).step(lambda: m(X)), r"shape \[12, 1\]"),
    "a mean in the forward": (
        lambda m: MeZO(m, evaluator="in-forward").step(lambda x: losses_of(m)().mean(), torch.ones(5, 4)),
        "gave one number, the mean of its batch",
    ),
    "no batch": (lambda m: MeZO(m, evaluator="in-forward").step(losses_of(m)), "has to be given the batch"),
    "one loss": (lambda m: MeZO(m, normalize_by_std=True).step(lambda: losses_of(m)().mean()), "gave one loss"),
    "noise": (lambda m: MeZO(m, noise="gausian"), "Did you mean 'gaussian'"),
    "epsilon": (lambda m: MeZO(m, epsilon=0), "^epsilon: "),
    "option": (lambda m: MeZO(m, rule={"name": "sgd", "beta": 1}), "^rule.beta: not an option"),
    "seed": (lambda m: MeZO(m, seed=-1), "seed is -1"),
    "nothing": (lambda m: MeZO([]), "no parameters"),
    "no module": (lambda m: MeZO(None, lr=1), "what is to move is NoneType, and no module"),
    "a name": (lambda m: SVRG("gpt2", losses_of(m)), "what is to move is str, and no module"),
    "two rates": (
        lambda m: MeZO([{"params": [p], "lr": lr} for p, lr in zip(list(m.parameters())[:2], (1, 2), strict=True)]),
        "learning rates of their own",
    ),
    "waiting": (
        lambda m: MeZO(m.parameters(), evaluator={"name": "in-forward", "flush_every": 8}),
        "flush_every lets updates wait",
    ),
    "half in place": (lambda m: MeZO(m.bfloat16(), evaluator="in-place"), "moving bfloat16 weights in place"),
    "anchor": (lambda m: SVRG(m, losses_of(m), weight_decay=0.1), "anchor=displacement undoes updates"),
    "an anchor that is drawn": (lambda m: SVRG(m, drawing(m)).step(losses_of(m)), "differ from one run to the next"),
    "more parameters": (
        lambda m: MeZO(m).add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
        "takes no more parameters",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said_in_the_words_of_an_optimizer(case):
    act, message = REFUSED[case]
    model = network()
    before = bits(model)
    with pytest.raises(ZofoError, match=message) as caught:
        act(model)
    assert "method." not in str(caught.value)
    assert same(model, before) or case == "half in place"


@pytest.mark.parametrize(
    ("part", "message"), [(nn.Dropout(0.1), "the dropout '3'"), (nn.BatchNorm1d(16), "the normalisation '3'")]
)
def test_train_mode_is_refused_where_it_makes_two_points_two_models(part, message):
    model = network(torch.float32, part)
    optimizer = MeZO(model)
    before = bits(model)
    for _ in range(2):  # in its first step, and later
        model.train()
        with pytest.raises(EvaluatorError, match=message):
            optimizer.step(losses_of(model))
        assert same(model, before)
        model.eval()
        optimizer.step(losses_of(model))
        before = bits(model)
    plain = network().train()
    MeZO(plain).step(losses_of(plain))  # nothing in it is random


def test_dropout_that_no_module_shows_is_found_by_asking_twice():
    model = network()
    hidden = lambda: F.dropout(losses_of(model)(), 0.5, training=model.training)  # noqa: E731
    model.eval()
    optimizer = MeZO(model)
    optimizer.step(hidden)
    model.train()
    with pytest.raises(EvaluatorError, match="differ from one run to the next"):
        optimizer.step(hidden)


# what moves


def test_named_parameters_move_as_the_module_does_and_decay_as_their_group():
    one, other, third = network(), network(), network()
    MeZO(one, lr=0.01).step(losses_of(one))
    MeZO(other.named_parameters(), lr=0.01).step(losses_of(other))
    assert same(other, bits(one))
    named = dict(third.named_parameters())
    groups = [
        {"params": [named["0.weight"], named["0.bias"]], "weight_decay": 0.5},
        {"params": [named["3.weight"]], "weight_decay": 0.0},
    ]
    before = bits(third)
    MeZO(groups, lr=0.1).step(lambda: torch.ones(1))
    for name, tensor in third.state_dict().items():
        torch.testing.assert_close(tensor, before[name] * (0.95 if name.startswith("0.") else 1.0))


def test_it_works_in_inference_mode_and_outside_of_it():
    one, other = network(), network()
    optimizer, beside = MeZO(one, lr=3e-3, momentum=0.5), MeZO(other, lr=3e-3, momentum=0.5, rule={"name": "sgd"})
    with torch.inference_mode():
        optimizer.step(losses_of(one))
    optimizer.step(losses_of(one))
    beside.step(losses_of(other))
    beside.step(losses_of(other))
    assert same(one, bits(other))


def test_updates_that_wait_are_written_before_anybody_looks():
    look = {
        "model": lambda model, optimizer: model(X),
        "weights": lambda model, optimizer: model.state_dict(),
        "optimizer": lambda model, optimizer: optimizer.state_dict(),
        "flush": lambda model, optimizer: optimizer.flush(),
    }
    at_once, found = network(), {}
    optimizer = MeZO(at_once, lr=3e-3, evaluator="in-forward")
    losses = stepped(optimizer, at_once, 5)
    for name, act in look.items():
        model = network()
        start = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer = MeZO(model, lr=3e-3, evaluator={"name": "in-forward", "flush_every": 8})
        torch.testing.assert_close(stepped(optimizer, model, 5), losses, rtol=1e-5, atol=1e-4)
        assert all(torch.equal(p, before) for p, before in zip(model.parameters(), start, strict=True))
        act(model, optimizer)
        found[name] = [parameter.detach().clone() for parameter in model.parameters()]
        torch.testing.assert_close(found[name], [p.detach() for p in at_once.parameters()], rtol=0, atol=3e-5)
        copied = copy.deepcopy(model)
        assert same(copied, bits(model))
    assert all(torch.equal(a, b) for one in found.values() for a, b in zip(one, found["flush"], strict=True))


def test_weights_that_are_loaded_are_not_written_upon_by_updates_from_before():
    model = network()
    best = copy.deepcopy(model.state_dict())
    optimizer = MeZO(model, lr=3e-3, evaluator={"name": "in-forward", "flush_every": 8})
    stepped(optimizer, model, 3)
    model.load_state_dict(best)
    model(X)
    optimizer.flush()
    assert all(torch.equal(tensor, best[name]) for name, tensor in model.state_dict().items())


def test_what_no_forward_uses_and_what_is_frozen_stays_and_is_said_once(monkeypatch):
    said = []
    monkeypatch.setattr("zofo.optim.base.LOG.warning", said.append)

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.unused, self.frozen = nn.Linear(6, 1), nn.Linear(4, 4), nn.Linear(1, 1)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.body(x))

    model = Pooled()
    before, optimizer = bits(model), MeZO(model, lr=0.1)
    optimizer.step(losses_of(model))
    optimizer.step(losses_of(model))
    assert said == optimizer.notes
    assert said[0].endswith("name them in trainable by more than '*'")
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"body.weight", "body.bias"}
    assert [note.split("(")[0] for note in optimizer.notes] == [
        "2 tensors that no forward uses ",
        "2 tensors with requires_grad=False ",
    ]


def test_half_precision_learns_by_steps_that_rounding_to_nearest_would_lose():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    start = model.weight.detach().float()
    optimizer = MeZO(model, lr=1e-7)  # a step is 1e-4 of the distance between two numbers
    for _ in range(20):
        optimizer.step(lambda: model.weight.float().square().sum())
    moved = (model.weight.float() != start).float().mean()
    assert 0 < moved < 0.1


def test_a_wrapped_module_has_the_names_of_its_own():
    model = network()
    assert list(MeZO(nn.DataParallel(model))._zo.backbone.parameters) == [name for name, _ in model.named_parameters()]


# examples

PAGE = (Path(__file__).parent.parent / "docs" / "integrations.md").read_text(encoding="utf-8")


def test_the_programs_of_the_page_run_as_they_stand():
    programs = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(programs) == 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec("\n".join(programs), made := {})  # noqa: S102  # our own
    assert made["loss"].mean() < 4  # at first 8


def test_a_plain_loop_over_a_data_loader():
    model = network().eval()
    optimizer = MeZO(model, lr=2e-3)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=5, shuffle=True)
    means = []
    for _epoch in range(40):
        total = 0.0
        for x, y in loader:  # the last batch is smaller
            loss = optimizer.step(lambda x=x, y=y: F.mse_loss(model(x), y))
            total += loss.item() * len(x)
        means.append(total / len(X))
    assert means[-1] < 0.6 * means[0]


def test_an_image_classifier_learns_by_a_loss_that_has_no_gradient():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.ViTForImageClassification(config).eval()
        labels = torch.randint(2, (32,))
        images = torch.randn(32, 3, 8, 8) + (2.0 * labels - 1).view(-1, 1, 1, 1)
    optimizer = MeZO(model, lr=0.3, epsilon=0.1, num_directions=4)

    def wrong(batch):
        pixels, right = batch
        logits = model(pixel_values=pixels).logits
        return (logits.argmax(dim=1) != right).float()  # one loss for each image

    losses = [optimizer.step(wrong, (images, labels)).item() for _ in range(30)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 1


def test_svrg_asks_the_anchor_closure_in_every_qth_step_alone():
    model, calls = network(), []

    def counted(name, rows):
        return lambda: calls.append(name) or losses_of(model, rows)()

    optimizer = SVRG(model, counted("anchor", slice(None)), lr=2e-3, anchor_interval=3)
    optimizer.step(counted("batch", slice(0, 4)))
    calls.clear()
    losses = [optimizer.step(counted("batch", slice(step % 3 * 4, step % 3 * 4 + 4))).item() for step in range(1, 60)]
    assert calls[:10] == ["batch"] * 8 + ["anchor"] * 2
    assert sum(losses[-9:]) < 0.7 * sum(losses[:9])
    assert {name.rsplit("_", 1)[0] for name in optimizer.last_step.coefficients} == {
        "projected_gradient",
        "projected_gradient_anchor",
    }


def test_a_peft_model_moves_its_adapter_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in an old way
        model = peft.get_peft_model(build_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"])).eval()
    ids = torch.arange(12).view(2, 6) + 5
    before, optimizer = bits(model), MeZO(model)
    assert optimizer.param_groups[0]["lr"] == 5e-4
    optimizer.step(lambda: model(input_ids=ids, labels=ids).loss)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)


@pytest.mark.soak
def test_lightning_steps_it_by_hand_and_goes_on_from_its_checkpoint(tmp_path):
    import lightning

    (program,) = re.findall(r"```py\n(class Classifier.*?)```", PAGE, flags=re.DOTALL)
    exec(program, shown := {"lightning": lightning, "MeZO": MeZO, "cross_entropy": F.mse_loss})  # noqa: S102  # our own

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.net = network(torch.float32, nn.Dropout(0.1))
            self.losses = []
            self.eval()

        def configure_optimizers(self):
            optimizer = MeZO(self.net, lr=0.02)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 5)]

        def training_step(self, batch, number):
            loss = self.optimizers().step(lambda: F.mse_loss(self.net(batch[0]), batch[1]))
            self.lr_schedulers().step()
            self.losses.append(loss.item())

    def fitted(epochs, checkpoint=None, module=None):
        module = module or Module()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's own, on workers and modes
            trainer = lightning.Trainer(max_epochs=epochs, default_root_dir=tmp_path / str(epochs), **quiet)
            trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        return module, trainer

    whole, _ = fitted(4)
    _, stopped = fitted(2)
    rest, _ = fitted(4, stopped.checkpoint_callback.best_model_path)
    assert rest.losses == whole.losses[6:]
    net = network()
    before = bits(net)
    fitted(1, module=shown["Classifier"](net))
    assert not same(net, before)
    assert same(rest, bits(whole))


def test_the_method_names_the_optimizer_where_it_is_given_a_model_or_its_parameters():
    model = torch.nn.Linear(2, 1)
    given = [((model,), {}), ((), {"model": model}), ((model.parameters(),), {}), ((), {"params": model.parameters()})]
    for kind in (zofo.MeZO, METHODS["svrg"]):
        for args, options in given:
            with pytest.raises(
                ConfigError, match=rf"zofo.methods.{kind.__name__} is a method.* and was given"
            ) as caught:
                kind(*args, **options, lr=1e-3)
            assert "zofo.optim.MeZO(model" in caught.value.hint
