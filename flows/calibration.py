"""``--calibrate``: measure the forms of evaluation and say which one was taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.console import err, make_table, note

if TYPE_CHECKING:
    from pipeline.config import RunConfig

COLUMNS = ("form", "ms a shard", "loss values/s", "")


def calibrated(config: RunConfig, *, quiet: bool) -> RunConfig:
    """Return the configuration with the form that is the fastest on this machine.

    Unless ``quiet``, the measurements are shown on stderr.

    Raises
    ------
    ValueError — if the algorithm has no joint probes.
    """
    from pipeline.calibrate import calibrate

    chosen, timings = calibrate(config)
    if not quiet:
        rows = [(t.form, 1e3 * t.seconds, t.values_per_s, t.why_not) for t in timings]
        err.print(make_table(COLUMNS, rows, title="forms of evaluation"))
        note(f"evaluation_form={chosen.evaluation_form}, recorded with the run")
    return chosen
