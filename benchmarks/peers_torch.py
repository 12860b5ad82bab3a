"""Peers in PyTorch: a loop over eager runs, and `torch.func.vmap` over lanes."""

from typing import Any

import jax
import torch  # pyright: ignore[reportMissingImports] (the extra bench)
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks.timing import Peer
from benchmarks.workload import Workload, initial_lanes, learning_rates

DEFAULT_THREADS = torch.get_num_threads()


def device() -> str:
    """Where torch runs: beside JAX, on the GPU if both have one, else on the CPU."""
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return "cuda" if on_gpu else "cpu"


def eager(workload: Workload, lanes: int, threads: int, device: str = "cpu") -> Peer:
    """A Python loop over learning rates and steps: autograd, parameters updated in place.

    Args:
        workload: the work.
        lanes: how many learning rates.
        threads: of torch's own pool.
        device: "cpu" or "cuda".

    Returns:
        The peer; its `run` returns the lanes' final params.
    """
    starts = _starts(workload, lanes, device)
    rates = learning_rates(lanes).tolist()
    inputs, targets = _data(workload, device)

    def run(steps: int) -> Any:
        torch.set_num_threads(threads)
        finals = []
        for lane, rate in enumerate(rates):
            params = [leaf[lane].clone().requires_grad_() for leaf in starts]
            for _ in range(steps):
                value = _loss(params, *_batch(workload, inputs, targets))
                gradients = torch.autograd.grad(value, params)
                with torch.no_grad():
                    for param, gradient in zip(params, gradients, strict=True):
                        param.sub_(gradient, alpha=rate)
            finals.append([param.detach() for param in params])
        _wait(device)
        return finals

    return Peer(_name("torch eager", threads, device), run)


def vmap(workload: Workload, lanes: int, threads: int, device: str = "cpu") -> Peer:
    """All lanes at once: `torch.func.vmap` of `torch.func.grad`, parameters updated in place.

    Args:
        workload: the work.
        lanes: how many learning rates.
        threads: of torch's own pool.
        device: "cpu" or "cuda".

    Returns:
        The peer; its `run` returns the final params with a leading axis of lanes.
    """
    starts = _starts(workload, lanes, device)
    rates = torch.from_numpy(learning_rates(lanes)).to(device)
    columns = [rates.reshape(-1, *(1,) * (leaf.ndim - 1)) for leaf in starts]
    inputs, targets = _data(workload, device)
    gradient_of = torch.func.vmap(torch.func.grad(_loss), in_dims=(0, None, None))

    def run(steps: int) -> Any:
        torch.set_num_threads(threads)
        params = [leaf.clone() for leaf in starts]
        for _ in range(steps):
            gradients = gradient_of(params, *_batch(workload, inputs, targets))
            for param, gradient, column in zip(params, gradients, columns, strict=True):
                param.addcmul_(gradient, column, value=-1)
        _wait(device)
        return params

    return Peer(_name("torch.func.vmap", threads, device), run)


def _loss(params: Any, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    first, first_bias, second, second_bias = params
    hidden = torch.tanh(torch.addmm(first_bias, inputs, first))
    return functional.cross_entropy(torch.addmm(second_bias, hidden, second), targets)


def _batch(workload: Workload, inputs: torch.Tensor, targets: torch.Tensor) -> Any:
    if workload.batch_size is None:
        return inputs, targets
    chosen = torch.randint(len(targets), (workload.batch_size,), device=targets.device)
    return inputs[chosen], targets[chosen]


def _starts(workload: Workload, lanes: int, device: str) -> list[torch.Tensor]:
    return [torch.tensor(leaf, device=device) for leaf in initial_lanes(workload, lanes)]


def _data(workload: Workload, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.tensor(workload.inputs, device=device)
    return inputs, torch.tensor(workload.targets, dtype=torch.int64, device=device)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _name(method: str, threads: int, device: str) -> str:
    if device != "cpu":
        return f"{method}, {device}"
    return f"{method}, {threads} thread{'s' if threads > 1 else ''}"
