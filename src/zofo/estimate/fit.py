"""Which configurations fit into some memory, and the time of each."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from zofo.config import parse_model
from zofo.errors import ConfigError, ZofoError
from zofo.estimate.machine import Machine
from zofo.estimate.report import RowSource, estimate_config
from zofo.estimate.step import StepEstimate
from zofo.methods import METHODS
from zofo.training import RunConfig

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_FIRST = {"name": "first-order", "adapter": "lora"}
_AGAIN = {**_FIRST, "gradient_checkpointing": True}
_SUBSPACE = {"name": "mezo", "adapter": "subspace"}
_HALF, _PACKED = {"dtype": "bfloat16"}, {"quantization": "nf4"}
CANDIDATES: tuple[tuple[Mapping[str, str], Mapping[str, Any]], ...] = (
    ({}, _FIRST),
    ({}, _AGAIN),
    (_HALF, _FIRST),
    (_HALF, _AGAIN),
    (_PACKED, _FIRST),
    (_PACKED, _AGAIN),
    ({}, {"name": "mezo"}),
    (_HALF, {"name": "mezo"}),
    (_PACKED, _SUBSPACE),
)
"""Keys of the model and of the method, in the order in which docs/choosing.md prefers them."""


@dataclass(frozen=True)
class Fit:
    """A configuration that was tried.

    Args:
        keys: what to type for it, in addition to the configuration.
        needs: what must be installed first; None for nothing.
    """

    keys: tuple[str, ...]
    config: RunConfig
    estimate: StepEstimate
    fits: bool
    needs: str | None = None


def parse_bytes(text: str) -> int:
    """A size such as `8GB`, `7.5GiB` or `900M` in bytes. Raises ConfigError for other text."""
    letters = text.strip().lower().removesuffix("b")
    number = letters.rstrip("kmgti")
    try:
        size = float(number) * _UNITS[letters[len(number) :]]
    except (KeyError, ValueError) as error:
        raise ConfigError(f"--max-memory is {text!r}, which is no size", "write it as 8GB, 7.5GiB or 900MB") from error
    if number == letters and size < 2**20:
        raise ConfigError(f"--max-memory is {text!r}, which is less than a mebibyte", f"did you mean {number}GB?")
    if not 0 < size < float("inf"):
        raise ConfigError(f"--max-memory is {text!r}, but must be above 0", "write it as 8GB, 7.5GiB or 900MB")
    return int(size)


def parse_seconds(text: str) -> float:
    """A time such as `90s`, `20m` or `2h` in seconds; a number alone is seconds. Raises ConfigError for other text."""
    try:
        unit = {"s": 1, "m": 60, "h": 3600}.get(text.strip()[-1:])
        found = float(text) if unit is None else float(text.strip()[:-1]) * unit
    except ValueError as error:
        raise ConfigError(f"--time is {text!r}, which is no time", "write it as 90s, 20m or 2h") from error
    if not math.isfinite(found) or found <= 0:
        why = "but must be above 0" if found <= 0 else "which is no time"
        raise ConfigError(f"--time is {text!r}, {why}", "write it as 90s, 20m or 2h")
    return found


def fitting(
    config: RunConfig,
    source: RowSource,
    machine: Machine,
    device: str,
    limit: int,
    first: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[Fit]:
    """Try each of `CANDIDATES` with as many examples at once as fit.

    Fewer examples at once do not change the result: a first-order step accumulates gradients
    (`gradient_accumulation_steps`), and MeZO splits its batch (`micro_batch`).

    Args:
        config: configuration with the model, the rows and the batch size.
        first: stop at the first that fits.

    Returns:
        Those that fit, in order of preference; if none does, only the smallest, with `fits` false.

    Raises:
        ConfigError: none of them supports this model; the message has the last reason.
    """
    tried = functools.partial(_tried, config, source, machine, device, limit)
    found = list[Fit]()
    missed: list[tuple[Mapping[str, str], Mapping[str, Any], Fit]] = []
    problem: ZofoError | None = None
    for model, method in CANDIDATES:
        on_progress(" ".join(["estimates", *model.values(), *map(str, method.values())]))
        try:
            fit = _largest(functools.partial(tried, model, method), config.method.batch_size, limit)
        except ZofoError as error:
            problem = error
            continue
        if not fit.fits:
            missed.append((model, method, fit))
            continue
        found.append(fit)
        if first:
            break
    if not found and not missed:
        assert problem is not None
        raise ConfigError(f"no way to train fits this model: {problem.message}", problem.hint)
    if found:
        return found
    model, method = min(missed, key=lambda one: one[2].estimate.held_bytes)[:2]
    return [tried(model, method, 1)]


def _largest(tried: Callable[[int], Fit], batch: int, limit: int) -> Fit:
    """One candidate, with the largest divisor of the batch that fits as examples at once."""
    whole = tried(batch)
    if whole.fits or batch == 1 or whole.estimate.held_bytes > limit:
        return whole
    least = tried(1)
    if not least.fits:
        return least
    slope = (whole.estimate.peak_bytes - least.estimate.peak_bytes) / (batch - 1)
    for at_once in (part for part in range(batch // 2, 1, -1) if batch % part == 0):
        if least.estimate.peak_bytes + slope * (at_once - 1) <= limit and (fit := tried(at_once)).fits:
            return fit
    return least


def _tried(
    config: RunConfig,
    source: RowSource,
    machine: Machine,
    device: str,
    limit: int,
    model: Mapping[str, str],
    method: Mapping[str, Any],
    at_once: int,
) -> Fit:
    batch = config.method.batch_size
    parts = batch // at_once
    own: dict[str, Any] = dict(method)
    if at_once < batch and METHODS[str(own["name"])].needs_gradient:
        own |= {"batch_size": at_once, "gradient_accumulation_steps": parts}
    elif at_once < batch:
        own |= {"batch_size": batch, "evaluator": {"name": "in-forward", "micro_batch": at_once}}
    else:
        own["batch_size"] = batch
    asked = config.model.model_copy(update={"quantization": None, **model})
    configured = parse_model(METHODS[str(own["name"])].Config, own)
    scored = min(config.training.eval_batch_size, max(1, at_once))
    training = config.training.model_copy(update={"eval_batch_size": scored})
    whole = config.model_copy(update={"model": asked, "method": configured, "training": training})
    estimate = estimate_config(whole, source, machine, device, configured, evaluation=True)
    keys = [f"model.{key}={value}" for key, value in model.items()]
    if config.model.quantization is not None and "quantization" not in model:
        keys.append("model.quantization=null")
    keys += [f"method={own.pop('name')}", *(f"method.{key}={_typed(value)}" for key, value in own.items())]
    keys.append(f"training.eval_batch_size={scored}")
    needs = "pip install 'zofo[quantized]'" if "quantization" in model and find_spec("bitsandbytes") is None else None
    return Fit(tuple(keys), whole, estimate, estimate.peak_bytes <= limit, needs)


def _typed(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_typed(one)}" for key, one in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
