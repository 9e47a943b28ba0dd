"""Jobs in threads, and sweeps that are made of them."""

from __future__ import annotations

import multiprocessing
import threading
import time

import pytest
import torch

from conftest import build_model
from zofo.backbone import Backbone, Update
from zofo.displacement import Displacement, Key
from zofo.noise import NOISES, BlockRotation
from zofo.threads import run_jobs


@pytest.fixture(params=[1, 3, 12])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_all_jobs_are_done_each_on_one_core(threads):
    done, weight = [], torch.zeros(2, requires_grad=True)

    def job(number):
        weight.data.add_(1)  # and no gradient is asked for
        done.append((number, threading.current_thread().name, torch.get_num_threads(), torch.is_grad_enabled()))
        time.sleep(0.01)

    run_jobs([lambda number=number: job(number) for number in range(12)])
    assert sorted(number for number, *_ in done) == [*range(12)]
    assert len({name for _, name, *_ in done}) == min(threads, 8)
    assert {cores for _, _, cores, _ in done} == {1}
    assert torch.get_num_threads() == threads  # elsewhere nothing has changed
    run_jobs([])


def test_after_an_error_no_job_is_under_way(threads):
    begun, ended = [], []

    def job(number):
        begun.append(number)
        if number == 2:
            raise ValueError("two")
        time.sleep(0.02)
        ended.append(number)

    with pytest.raises(ValueError, match="two"):
        run_jobs([lambda number=number: job(number) for number in range(100)])
    assert len(begun) == len(ended) + 1 < 30


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_was_forked_has_threads_of_its_own(threads):
    run_jobs([lambda: None] * 4)
    child = multiprocessing.get_context("fork").Process(target=run_jobs, args=([lambda: None] * 4,))
    child.start()
    child.join(20)
    assert child.exitcode == 0


@pytest.mark.parametrize("noise", ["gaussian", "low-rank"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sweep_has_the_same_bits_in_any_number_of_threads(noise, dtype):
    """Also where tensors are masked, decay, are not contiguous, or wait for many updates at once."""
    found = []
    before = torch.get_num_threads()
    for count in (1, 4):
        torch.set_num_threads(count)
        model = build_model("llama").to(dtype)
        first = model.model.layers[0].mlp.up_proj.weight
        first.data = first.data.T.contiguous().T
        backbone = Backbone(model, NOISES[noise](), block=1000, mask=BlockRotation(num_blocks=2))
        moves = [Displacement({Key(0, step, i): 0.01 * (i + 1) for i in range(2)}) for step in range(4)]
        for step, move in enumerate(moves):
            backbone.apply_(Update(move, decay_factor=0.1 * (step % 2)))
        with backbone.deferred_writes():
            for move in moves:
                backbone.apply_(Update(move))
        found.append(backbone.fingerprint())
    torch.set_num_threads(before)
    assert found[0] == found[1]
