"""What a reader did that nobody should have to guess, counted and said once."""

from __future__ import annotations


class Notes:
    """Counts what was met while reading, by kind, with the first example of each."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, example: str, n: int = 1) -> None:
        """Count ``n`` more of a kind, such as "pictures with further frames"."""
        before, first = self._seen.get(kind, (0, example))
        self._seen[kind] = (before + n, first)

    def sentences(self) -> list[str]:
        """Return one sentence a kind: how many there were, and the first of them."""
        return [
            f"{kind[0].upper()}{kind[1:]}: {n}, such as {first}."
            for kind, (n, first) in self._seen.items()
        ]
