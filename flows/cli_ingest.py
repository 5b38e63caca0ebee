"""``ndcao ingest``: raw images into a verified store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import err, note, print_json, say

Name = Annotated[
    str,
    typer.Argument(
        help="digits, mnist, fashion-mnist, cifar10, image-folder or npz.",
        show_default=False,
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="Raw files: a folder, archive or .npz. Without it the known ones are "
        "downloaded.",
        show_default=False,
    ),
]
Store = Annotated[
    Path | None,
    typer.Option(
        help="Store to write. Default: data/NAME.zarr under $NDCAO_HOME or here.",
        show_default=False,
    ),
]
LimitTrain = Annotated[
    int | None,
    typer.Option(min=1, help="Keep the first N training samples.", show_default=False),
]
LimitTest = Annotated[
    int | None,
    typer.Option(min=1, help="Keep the first N test samples.", show_default=False),
]
Unverified = Annotated[
    bool,
    typer.Option(
        "--unverified",
        help="Accept a re-packed or partial copy of a known set; the store says so.",
    ),
]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="Replace a store that was made from another source.",
    ),
]
Flow = Annotated[bool, typer.Option("--flow", help="Run as a Prefect flow run.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON line on stdout.")]


def ingest(
    name: Name,
    source: From = None,
    store: Store = None,
    limit_train: LimitTrain = None,
    limit_test: LimitTest = None,
    unverified: Unverified = False,
    replace: Replace = False,
    flow: Flow = False,
    as_json: Json = False,
) -> None:
    """Read raw images once into a checksummed Zarr store that training reads.

    Checksums are those of the uncompressed content, so any gzip wrapping is accepted.
    The store appears only when it is complete and re-read; an interrupted ingest leaves
    none.

    Images of your own lie in class folders (cat/*.png, or train/cat/*.png with test/
    and val/ beside train/), packed as zip or tar or not, or are the arrays x_train,
    y_train, x_test, y_test (or x, y) of an .npz.

    [bold]Examples[/bold]
    $ ndcao ingest digits                      (bundled: no file, no network)
    $ ndcao ingest mnist                       (downloads, with checksums)
    $ ndcao ingest mnist --from ~/raw/mnist --limit-train 10000
    $ ndcao ingest image-folder --from pets.zip          (gives data/pets.zarr)
    $ ndcao ingest npz --from scans.npz --store data/scans-v2.zarr
    """
    started = time.perf_counter()
    if flow:
        from flows.ingest import ingest_flow
        from flows.servers import ensure_api

        ensure_api()
        info: dict[str, Any] = ingest_flow(
            name,
            None if source is None else str(source),
            None if store is None else str(store),
            limit_train,
            limit_test,
            unverified,
            replace,
        )
    else:
        from flows.stores import ingest_to_dict

        with _progress(f"ingest {name}") as progress:
            info = ingest_to_dict(
                name,
                source=source,
                store=store,
                limit_train=limit_train,
                limit_test=limit_test,
                unverified=unverified,
                replace=replace,
                progress=progress,
            )
    for sentence in () if flow else info["notes"]:  # a flow has logged them
        note(f"note: {sentence}")
    if as_json:
        print_json(info)
        return
    from flows.stores import describe_store

    say(describe_store(info))
    note(f"done in {time.perf_counter() - started:.1f} s")


@contextmanager
def _progress(title: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield a callback (stage, done, total) that draws a bar; None off a terminal."""
    if not err.is_terminal:
        yield None
        return
    from rich.progress import Progress

    with Progress(console=err, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{title}: {stage}")
            bars.update(tasks[stage], completed=done, total=total or None)

        yield show
