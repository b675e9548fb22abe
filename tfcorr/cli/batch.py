"""Which output belongs to which input: files and folders in, jobs out, or an error before any work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfcorr.errors import TfcorrError, UsageError
from tfcorr.imaging.files import INPUT_SUFFIXES, OUTPUT_SUFFIXES
from tfcorr.paths import real_path

__all__ = ["Job", "image_files", "plan_jobs"]


@dataclass(frozen=True)
class Job:
    """One image to upscale: where it is, and where the result goes."""

    source: Path
    target: Path


def image_files(folder: Path, *, outside: Path | None = None) -> list[Path]:
    """Lists the image files in a folder and its subfolders by their endings, sorted; hidden ones are left
    out.

    Args:
        folder: the folder to search.
        outside: a folder inside it that is left out, for example the one that outputs are written to.

    Raises:
        TfcorrError: the folder cannot be listed.
    """
    left_out = real_path(outside) if outside is not None else None

    def refuse(error: OSError) -> None:
        raise TfcorrError(f"{error.filename}: {error.strerror}")

    found = []
    for directory, subfolders, names in os.walk(folder, onerror=refuse):
        here = Path(directory)
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and real_path(here / name) != left_out
        )
        found += [
            here / name
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in INPUT_SUFFIXES
        ]
    return found


def plan_jobs(inputs: Sequence[str], output: str) -> list[Job]:
    """Decides the output file of every input.

    One input file goes to the file `output`, or into it if it is a folder (existing, or written with a slash
    at its end). Several inputs, or a folder, go into the folder `output` under their own names; what lies in
    subfolders of an input folder keeps its place in them. A format that is read but not written becomes PNG.

    Args:
        inputs: files and folders as given; a file that does not exist is planned too, and fails when it is
          read.
        output: the file or folder to write.

    Returns:
        The jobs in the order of the inputs, files of folders sorted. An input named twice stands once.

    Raises:
        UsageError: two inputs have the same output, an output is one of the inputs or lies elsewhere through
            a link, a folder is needed and `output` is a file, or its ending is no writable format.
        TfcorrError: an input folder has no image in it or cannot be read.
    """
    target = Path(output)
    to_folder = (
        len(inputs) > 1 or Path(inputs[0]).is_dir() or target.is_dir() or output.endswith(("/", os.sep))
    )
    if not to_folder:
        if target.suffix.lower() not in OUTPUT_SUFFIXES:
            raise UsageError(
                f"--output {output}: cannot tell a format from the ending {target.suffix!r} (expected one of "
                f"{', '.join(sorted(OUTPUT_SUFFIXES))}, or a folder)"
            )
        return _checked([Job(Path(inputs[0]), target)])
    if target.exists() and not target.is_dir():
        raise UsageError(f"--output {output}: is a file, but several images need a folder to go to")
    jobs = []
    for given in map(Path, inputs):
        if given.is_dir():
            files = image_files(given, outside=target)
            if not files:
                raise TfcorrError(
                    f"{given}: no image file in this folder ({', '.join(sorted(INPUT_SUFFIXES))})"
                )
            jobs += [Job(path, _output_name(target / path.relative_to(given))) for path in files]
        else:
            jobs.append(Job(given, _output_name(target / given.name)))
    jobs = _checked(list(dict.fromkeys(jobs)))
    for job in jobs:
        if not real_path(job.target).is_relative_to(real_path(target)):
            raise UsageError(f"--output {output}: {job.target} would lie elsewhere, through a link")
    return jobs


def _output_name(path: Path) -> Path:
    return path if path.suffix.lower() in OUTPUT_SUFFIXES else path.with_suffix(".png")


def _checked(jobs: list[Job]) -> list[Job]:
    """Refuses jobs that would overwrite each other or an input."""
    sources = {real_path(job.source): job.source for job in jobs}
    targets: dict[Path, Job] = {}
    for job in jobs:
        place = real_path(job.target)
        if place in sources:
            raise UsageError(f"--output: {job.target} is the input {sources[place]}; choose another place")
        other = targets.setdefault(place, job)
        if other is not job:
            raise UsageError(
                f"{other.source} and {job.source} would both be written to {job.target}; "
                "rename one or call the command twice"
            )
    return jobs
