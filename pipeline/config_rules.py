"""Which settings of a run go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blocks.activity_noise import noise_of

if TYPE_CHECKING:
    from pipeline.config import RunConfig


def check_consistent(config: RunConfig) -> None:
    """Refuse settings that contradict each other.

    Raises
    ------
    ValueError — naming the setting.
    """
    algorithm = config.algorithm
    if config.mode not in algorithm.modes:
        allowed = ", ".join(sorted(algorithm.modes))
        raise ValueError(
            f"`mode` must be one of {allowed} for algorithm {algorithm.kind}; "
            f"got {config.mode}. Choose another mode or algorithm."
        )
    if config.staleness is not None and config.mode == "sync" and config.staleness > 0:
        raise ValueError(
            f"`staleness` must be 0 in sync mode; got {config.staleness}. "
            "Use --mode async with --staleness."
        )
    if config.budget.loss_values is not None and not algorithm.scored:
        raise ValueError(
            "`budget.loss_values` must not be used with algorithm "
            f"{algorithm.kind}, which asks for no loss values; got "
            f"{config.budget.loss_values}. Use steps, samples or gradient_evals."
        )
    if config.cluster.kind == "cuda" and config.device != "cuda":
        raise ValueError(
            "`device` must be cuda when `cluster.kind` is cuda; got "
            f"{config.device}. Use --device cuda."
        )
    _check_precision(config)
    _check_replicas(config)
    _check_pipelined(config)
    if config.custom_blocks and config.blocks not in (None, "custom"):
        raise ValueError(
            "`custom_blocks` must come with `blocks: custom`; got "
            f"{config.blocks!r}. Drop one of the two."
        )


def _check_precision(config: RunConfig) -> None:
    algorithm = config.algorithm
    if config.precision == "float32":
        return
    if not algorithm.scored or noise_of(algorithm) is not None:
        why = (
            "whose noise on activations it would swallow"
            if algorithm.scored
            else "which scores nothing"
        )
        raise ValueError(
            f"`precision` must be float32 with algorithm {algorithm.kind}, {why}; got "
            f"{config.precision}. Leave it out."
        )


def _check_pipelined(config: RunConfig) -> None:
    algorithm = config.algorithm
    if config.pipelined and noise_of(algorithm) is None:
        raise ValueError(
            "`pipelined` must be left out with algorithm "
            f"{algorithm.kind}, whose blocks are no layers that hand activations "
            "on. Use activity-perturbation."
        )
    if config.pipelined and config.mode == "async" and config.staleness is not None:
        raise ValueError(
            "`staleness` must be left out with `pipelined`, whose waves are never "
            f"held back by it; got {config.staleness}."
        )


def _check_replicas(config: RunConfig) -> None:
    algorithm = config.algorithm
    kind = algorithm.kind
    if algorithm.blockwise:
        for name in ("nodes", "machines", "skew", "latency_s"):
            if getattr(config, name):
                raise ValueError(
                    f"`{name}` must be left out with algorithm {kind}, whose nodes "
                    f"are blocks, not replicas; got {getattr(config, name)}. Use "
                    "`blocks` to split the network."
                )
        return
    if config.mode == "async" and config.staleness is not None:
        raise ValueError(
            f"`staleness` must be left out with algorithm {kind}, whose replicas "
            f"never wait; got {config.staleness}. Use --mode sync where there is one."
        )
    if config.mode == "async" and config.latency_s:
        raise ValueError(
            f"`latency_s` must be 0 in async mode; got {config.latency_s}. Use "
            "`delays` to slow replicas down."
        )
    if config.skew and getattr(algorithm, "data", "shard") != "shard":
        raise ValueError(
            f"`skew` must be 0 with algorithm {kind}, whose nodes share all data; "
            f"got {config.skew}. Leave it out."
        )
    alone = "nodes" not in algorithm.defaults
    if alone and (config.nodes or 1) > 1:
        raise ValueError(
            f"`nodes` must be 1 for algorithm {kind}; got {config.nodes}. Use "
            "all-reduce-sgd or local-sgd for several replicas."
        )
    if config.machines and config.nodes and config.machines > config.nodes:
        raise ValueError(
            f"`machines` must be at most `nodes` = {config.nodes}; got "
            f"{config.machines}. Lower it."
        )
