"""Tiny real architectures, built from a configuration, with a tokenizer trained on a few lines: offline, in seconds."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import io
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import pytest

from promises import (  # noqa: F401  # pytest's hooks, and a fixture
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_runtest_makereport,
    tries,
)

if TYPE_CHECKING:  # the process of `pytest -n` that hands out the tests reads this file, and needs no torch
    import transformers

logging.getLogger().addHandler(logging.NullHandler())  # as pytest's own handlers: no record goes to standard error
os.fsync = os.fstat  # no test cuts the power, and a disk takes 5 ms; processes that tests start sync for real
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: what tests start would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
gc.set_threshold(20_000, 20, 100)  # at Python's own pace, collections take an eighth of the time of tiny runs


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """What was imported stays; without this each full collection of garbage walks through all of it."""
    import torch

    torch.set_num_threads(1)  # tiny tensors: threads that wait for each other cost more than they bring
    gc.collect()
    gc.freeze()


LINES = [
    "the film is a joy from start to finish . It was great terrible",
    "a dull and lifeless story that never finds its way . It was terrible great",
    "an honest , warm and funny picture , not to be missed . yes no maybe",
    "it drags on and on , and nobody laughed . wonderful awful good bad",
]
ARCHITECTURES = ("llama", "gpt2", "opt", "qwen2")
MORE_ARCHITECTURES = ("llama-untied", "qwen3", "mistral", "gemma2", "gemma3", "phi", "phi3")
ENCODERS = ("bert", "roberta", "distilbert")


def with_soak(values, quick):
    """Parameters of a test, of which `make test` runs those in `quick`, and `make soak` the others."""
    return [
        pytest.param(*v if isinstance(v, tuple) else (v,), marks=[] if v in quick else pytest.mark.soak) for v in values
    ]


def tiny_config(kind: str, vocabulary: int, positions: int = 64) -> transformers.PretrainedConfig:
    import transformers

    common = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    llama_like = {
        **common,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": positions,
    }
    if kind == "llama":
        return transformers.LlamaConfig(**llama_like, tie_word_embeddings=True)
    if kind == "qwen2":
        return transformers.Qwen2Config(**llama_like)
    if kind == "llama-untied":
        return transformers.LlamaConfig(**llama_like, attention_bias=True)
    if kind == "mixtral":
        return transformers.MixtralConfig(**llama_like, num_local_experts=4, num_experts_per_tok=2)
    if kind == "mistral":
        return transformers.MistralConfig(**llama_like)
    if kind == "phi":
        return transformers.PhiConfig(**llama_like)
    if kind == "phi3":
        return transformers.Phi3Config(**llama_like)
    if kind in ("qwen3", "gemma2", "gemma3"):
        configs = {
            "qwen3": transformers.Qwen3Config,
            "gemma2": transformers.Gemma2Config,
            "gemma3": transformers.Gemma3TextConfig,
        }
        return configs[kind](**llama_like, head_dim=8)
    if kind == "gpt2":
        return transformers.GPT2Config(**common, n_embd=16, n_layer=2, n_head=2, n_positions=positions)
    if kind == "opt":
        return transformers.OPTConfig(
            **common,
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=positions,
        )
    if kind in ("bert", "roberta"):
        configs = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}
        return configs[kind](
            **common,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=positions,
        )
    if kind == "distilbert":
        return transformers.DistilBertConfig(
            **common, dim=16, hidden_dim=24, n_layers=2, n_heads=2, max_position_embeddings=positions
        )
    raise ValueError(kind)


def build_model(
    kind: str,
    vocabulary: int = 300,
    seed: int = 0,
    positions: int = 64,
    head: type | None = None,
    attention: str | None = None,
):
    """A model of random weights: a causal one, or with `head` another, in the attention implementation asked for."""
    return copy.deepcopy(_built(kind, vocabulary, seed, positions, head, attention))  # a third of the time of a new one


@functools.cache
def _built(kind: str, vocabulary: int, seed: int, positions: int, head: type | None, attention: str | None):
    import torch
    import transformers

    head = head or transformers.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = head.from_config(tiny_config(kind, vocabulary, positions), attn_implementation=attention)
        for parameter in model.parameters():  # larger than the usual start, so that outputs differ visibly
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model.config.use_cache = False
    return model.eval()


def build_tokenizer(bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(LINES * 4, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer) -> Path:
    """A tiny Llama saved as a transformers folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    build_model("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def review_rows(count: int, start: int = 0) -> list[dict[str, object]]:
    good, bad = ("a joy", "warm and funny", "an honest picture"), ("dull", "lifeless", "it drags on")
    rows = []
    for i in range(start, start + count):
        label = i % 2
        words = (good if label else bad)[i // 2 % 3]
        rows.append({"sentence": f"{words} film number {i}", "label": label})
    return rows


def write_rows(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_reviews(folder: Path) -> Path:
    """A folder of made-up reviews, as `--data-dir` takes it."""
    write_rows(folder / "train.jsonl", review_rows(60))
    write_rows(folder / "validation.jsonl", review_rows(12, 60))
    write_rows(folder / "test.jsonl", review_rows(12, 80))
    return folder


@pytest.fixture
def data_dir(tmp_path) -> Path:
    return write_reviews(tmp_path / "data")


ONCE = {"on": True}
"""Whether what was checked or read in this process is not again: not in tests of `make soak`."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    ONCE["on"] = item.get_closest_marker("soak") is None


LEARNED = {}
"""What evaluators learned from each check that `checks_once` has seen pass."""

UNUSED = {}
"""The tensors that no forward of a model uses, by what is asked of the model."""

ALIKE = set()
"""Models that score rows of some lengths the same alone and beside each other."""

ASKING = ("noise", "evaluator", "adapter", "directions", "mask", "trainable")
ASKING += ("backbone_update", "backbone_adapter", "control_variate", "upper_objective")
"""What of a method decides how the model is asked, and so what its check finds."""


@pytest.fixture(autouse=True, scope="module")
def checks_once():
    """A model whose check has passed in this process is not checked again, which takes half of a tiny run; nor is it
    asked again which of its tensors a forward uses, or whether it scores rows of several lengths alike.

    What the checks find is in test_model_checks.py and test_mixed_lengths.py; tests of `make soak` make all of them.
    """
    module, data = (sys.modules.get(f"zofo.training.{name}") for name in ("train", "data_module"))
    if module is None:
        yield
        return
    import transformers

    from zofo.methods import TrainingContext

    checked_steps, unused_by, mixed_lengths = module.checked_steps, TrainingContext.unused_by, data.check_mixed_lengths

    @functools.wraps(unused_by)
    def unused_once(context, batch):
        if not ONCE["on"] or not isinstance(context.model, transformers.PreTrainedModel):
            return unused_by(context, batch)
        names = tuple(name for name, _ in context.model.named_parameters())
        key = (context.check_objective or context.objective, names, repr(context.model.config))
        if key not in UNUSED:
            UNUSED[key] = unused_by(context, batch)
        return UNUSED[key]

    @functools.wraps(mixed_lengths)
    def alike_once(model, pad, name, head, rows, longest):
        key = (type(model), model.dtype, repr(model.config), pad, head, frozenset(map(len, rows)), longest)
        if not ONCE["on"] or key not in ALIKE:
            mixed_lengths(model, pad, name, head, rows, longest)
            ALIKE.add(key)

    def once(config, method, prepared):
        parts = {name: getattr(config.method, name, None) for name in ASKING}
        asked = getattr(method, "_check_objective", getattr(method, "_objective", None))
        model = prepared.loaded.model  # two folders may hold the same one
        built = (repr(config.model.model_copy(update={"name": ""})), type(model), repr(model.config))
        key = (built, config.task.name, type(method).check, repr(parts), asked)
        evaluator = getattr(method.evaluator, "_inner", method.evaluator)  # of several processes
        if evaluator is None or not ONCE["on"]:
            return checked_steps(config, method, prepared)
        kept = vars(evaluator)
        if key in LEARNED:
            known = copy.deepcopy(LEARNED[key])
            evaluator.check = lambda asks: kept.update(known, _checked=[objective for objective, _ in asks])
        steps = checked_steps(config, method, prepared)
        if key not in LEARNED:
            names = [name for name in ("_layout", "per_point", "_siblings", "_tried") if name in kept]
            LEARNED[key] = copy.deepcopy({name: kept[name] for name in names})
        return steps

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "checked_steps", once)
        patched.setattr(data, "check_mixed_lengths", alike_once)
        patched.setattr(TrainingContext, "unused_by", unused_once)
        yield


READ = {}
"""What was read in this process, by where from, what for, and what stands there."""


def read_once(read, *what):
    """`read`, whose second call for the same files gives a copy of what the first one gave."""

    @functools.wraps(read)
    def once(source, *arguments, **options):
        own = options.get("quantization_config") or options.get("trust_remote_code")
        if own or not ONCE["on"] or not Path(source).is_dir():
            return read(source, *arguments, **options)
        files = sorted((path.name, path.stat()) for path in Path(source).iterdir())
        there = [(name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in files]
        key = repr((what, str(source), arguments, sorted(options.items()), there))
        if key not in READ:
            READ[key] = read(source, *arguments, **options)
        return copy.deepcopy(READ[key])

    return once


@pytest.fixture(autouse=True, scope="module")
def reads_once():
    """Files of a model and its tokenizer that were read in this process are not read again, which takes half of the
    time of loading a tiny model. How they are read is in test_loading.py; tests of `make soak` read all of them.
    """
    module = sys.modules.get("zofo.models.loading")
    if module is None:
        yield
        return
    head_class = module.head_class

    def once_class(head):
        known = head_class(head)
        read = staticmethod(read_once(known.from_pretrained, head))
        return type(known.__name__, (), {"from_pretrained": read, "from_config": known.from_config})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "head_class", once_class)
        patched.setattr(module, "read_tokenizer", read_once(module.read_tokenizer, "tokenizer"))
        yield


@pytest.fixture(scope="module")
def old_objects_kept():
    """For files whose tests collect garbage in full again and again, as a trainer of transformers does at each end:
    what is alive before them is not gone through each time, which took most of a short training."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def children_here(monkeypatch):
    """Interpreters that zofo starts run their code in this process, which has imported all of it; gives the commands.

    That they are processes of their own is tested in test_interpreters.py, and with long runs in `make soak`.
    """
    commands, run = [], subprocess.run

    def here(command, **options):
        if command[0] != sys.executable:
            return run(command, **options)
        commands.append(command)
        at, out, status = command.index("-c"), io.StringIO(), 0
        with monkeypatch.context() as patched, contextlib.redirect_stdout(out):
            patched.setattr(sys, "argv", [command[0], *command[at + 2 :]])
            patched.chdir(options.get("cwd") or ".")
            try:
                exec(command[at + 1].removeprefix("import sys; sys.path.pop(0); "), {})  # noqa: S102  # our own
            except SystemExit as end:
                status = end.code or 0
        return subprocess.CompletedProcess(command, status, out.getvalue(), "")

    monkeypatch.setattr(subprocess, "run", here)
    return commands


@pytest.fixture
def run_zofo(capsys):
    """Call the command line in this process; gives exit code, standard output and standard error."""

    from zofo.cli import main

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return end.value.code or 0, shown.out, shown.err

    return call
