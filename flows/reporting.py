"""Prefect tasks that turn kept runs into artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.artifacts import (
    inline_png,
    markdown_table,
    publish_markdown,
    publish_table,
    slug,
)
from flows.outcome import stores_of


@task(name="report run", retries=1, retry_delay_seconds=5, cache_policy=NO_CACHE)
def report_run_task(line: dict[str, Any]) -> None:
    """Publish a run's summary: a table, and a page with its store and its curves."""
    key = slug(f"run-{line['run_id']}")
    publish_table(key, [line], f"Summary of {line['run_id']}")
    facts = [{"": name, "value": value} for name, value in line.items()]
    parts = [
        f"# {line['run_id']}",
        f"Run store: `{Path(line['store']).resolve()}`",
        markdown_table(facts),
        _curves(line),
        "Open it with `xarray.open_zarr(store, consolidated=False)`, or compare it "
        f"with `ndcao compare {line['run_id']} …`.",
    ]
    text = "\n\n".join(part for part in parts if part)
    publish_markdown(f"{key}-page", text, f"Page of {line['run_id']}")


@task(name="compare", retries=1, retry_delay_seconds=5, cache_policy=NO_CACHE)
def compare_task(
    runs: list[str],
    out: str,
    results: str,
    exports: Sequence[str] = (),
    target: Mapping[str, float] | None = None,
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Align runs, write the page and the exports, publish table, curves and link.

    Returns
    -------
    dict — ``report`` (path of the page), ``exports`` (paths) and ``rows`` (one a run).
    """
    from pipeline.compare import combine_runs, loaded, summary_table
    from pipeline.curves import curves_png
    from pipeline.exports import check_export, write_export
    from pipeline.outputs import may_write
    from pipeline.report import write_report

    may_write(out, "report", "out")
    for path in exports:
        check_export(Path(path))
    combined = loaded(combine_runs(stores_of(runs, results)))
    rows = summary_table(combined).reset_index().to_dict(orient="records")
    page = write_report(
        *(combined, Path(out)),
        target=target,
        left_out=left_out,
        command=f"compare_flow of {len(runs)} runs, out={out}",
    )
    files = [f for path in exports for f in write_export(combined, Path(path))]
    name = slug(f"compare-{Path(out).stem}")
    publish_table(name, rows, f"Comparison of {len(runs)} runs")
    text = "\n\n".join(
        [
            f"# Comparison of {len(runs)} runs",
            f"Page: [{page.name}]({page.resolve().as_uri()}), a file on the machine "
            f"that wrote it: `{page.resolve()}`",
            *combined.attrs["kept_apart"],
            *(f"Export: `{file.resolve()}`" for file in files),
            markdown_table(rows),
            inline_png(curves_png(combined), "learning curves"),
        ]
    )
    publish_markdown(f"{name}-page", text, f"Comparison of {len(runs)} runs")
    exported = [str(file) for file in files]
    return {"report": str(page), "exports": exported, "rows": rows}


def _curves(line: dict[str, Any]) -> str:
    """Return the curves' picture, or nothing for a run that is not stored yet."""
    from pipeline.compare import combine_runs
    from pipeline.curves import curves_png

    if line["status"] == "interrupted":
        return ""
    return inline_png(curves_png(combine_runs([line["store"]])), "learning curves")
