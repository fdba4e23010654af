"""The closest existing word to one that does not exist. Nothing here knows what the words mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(word: str, known: Iterable[str]) -> str:
    """ "did you mean a, b?", or "" when nothing is close. Case does not count."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower()[:100], by_lower, n=3, cutoff=0.6)
    return f"did you mean {', '.join(by_lower[name] for name in close)}?" if close else ""
