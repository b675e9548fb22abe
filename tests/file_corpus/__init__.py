"""The corpus of odd, damaged and hostile image files: what each has to become, and a way to find out.

Everything is made by code. `cases()` lists the corpus and `examine` reads one of its entries as the command
line does; `tests/imaging/test_file_corpus.py` asserts it, `scripts/file_corpus.py` prints it as a table.
"""

import functools

from file_corpus import bombs, damage, images
from file_corpus.examine import Case, Outcome, examine

__all__ = ["Case", "Outcome", "cases", "examine"]


@functools.cache
def cases() -> tuple[Case, ...]:
    """The whole corpus."""
    return (
        *images.kinds(),
        *images.frames(),
        *images.names(),
        *damage.damaged(),
        *damage.places(),
        *damage.other_files(),
        *images.samples(),
        *bombs.enormous(),
        *bombs.bombs(),
    )
