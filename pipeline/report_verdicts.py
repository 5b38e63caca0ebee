"""The verdicts of the report's page, as HTML with every value escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

from pipeline.verdicts import MAX_VERDICTS, Verdict

__all__ = ["verdict_list"]

_SHOWN = 6  # unfolded


def verdict_list(found: Sequence[Verdict]) -> str:
    """Return a card a verdict; those after the sixth are folded away.

    Parameters
    ----------
    found : from `pipeline.verdicts.verdicts`.
    """
    if not found:
        return (
            '<p class="hint">No two methods of these runs share data set and model and '
            "differ in mode, or are gradient-free and a gradient baseline.</p>"
        )
    cards = [_card(one) for one in found]
    text = "\n".join(cards[:_SHOWN])
    if len(cards) > _SHOWN:
        more = "\n".join(cards[_SHOWN:])
        count = len(cards) - _SHOWN
        text += f"<details><summary>{count} more</summary>{more}</details>"
    if len(cards) == MAX_VERDICTS:
        text += f'<p class="hint">The first {MAX_VERDICTS} comparisons are shown.</p>'
    return text


def _card(one: Verdict) -> str:
    sentences = "".join(f"<p>{html.escape(text)}</p>" for text in one.sentences)
    small = [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in one.notes]
    if one.left_out:
        who = "; ".join(str(run) for run in one.left_out[:10])
        more = f"; and {len(one.left_out) - 10} more" if len(one.left_out) > 10 else ""
        small.append(f"Left out: {who}{more}.")
    below = f'<p class="hint">{html.escape(" ".join(small))}</p>' if small else ""
    title = html.escape(one.title)
    return f'<article class="verdict"><h3>{title}</h3>{sentences}{below}</article>'
