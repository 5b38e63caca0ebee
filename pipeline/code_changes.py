"""What a kept run's network is no more: its code, or what the code computes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pipeline.network_check import differ, read
from pipeline.record import LONGEST, same_platform
from pipeline.user_code import code_of, own_names, recorded_code

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from pipeline.config import RunConfig

logger = logging.getLogger(__name__)


def changes_since(
    ds: xr.Dataset,
    config: RunConfig,
    network: nn.Module,
    now: dict[str, Any],
    *,
    device: str = "",
) -> list[str]:
    """Say what has changed since a run was trained; each is also logged.

    Parameters
    ----------
    network : as it is built now.
    now : what it answers with the run's parameters (``network_check.answers``).
    device : where it answered; "" = where the settings say.
    """
    elsewhere = not same_platform(ds) or device not in ("", config.device)
    texts = _code(ds, config, network), _outputs(ds, now, elsewhere)
    found = [text for text in texts if text]
    if found and str(network)[:LONGEST] != ds.attrs.get("network", ""):
        found[-1] += f" The network is now {' '.join(str(network).split())[:300]}."
    for text in found:
        logger.warning("%s", text)
    return found


def _code(ds: xr.Dataset, config: RunConfig, network: nn.Module) -> str:
    recorded = recorded_code(ds.attrs)
    if recorded is None or not own_names(config):
        return ""
    try:
        changes = recorded.changes(code_of(config, network))
    except ValueError as err:  # its file was changed in this very process
        return str(err)
    if not changes:
        return ""
    return (
        f"`run` {ds.attrs['run_id']} was trained with other code than is here: "
        f"{changes}. What is computed now is of the code as it is now."
    )


def _outputs(ds: xr.Dataset, now: dict[str, Any], elsewhere: bool) -> str:
    if "network_outputs" not in ds.attrs:
        return ""
    recorded = read(ds.attrs["network_outputs"])
    how = differ(recorded, now, elsewhere=elsewhere)
    if not how:
        return ""
    return (
        f"`run` {ds.attrs['run_id']} must compute on a fixed batch what it did when it "
        f"was trained; got {how}. Its code, or a file or variable that it reads, has "
        "changed."
    )
