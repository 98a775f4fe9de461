"""Environments in which a distribution's entry points work as if pip had installed it."""

import os
import subprocess
import sys
import tomllib


def environment(source, folder):
    """Return the environment of a process in which the distribution in `source` is installed.

    Its metadata, taken from its pyproject.toml, are written to `folder`.
    """
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"
    )
    lines = [f"{key} = {value}" for key, value in project["entry-points"]["clipseq"].items()]
    info.joinpath("entry_points.txt").write_text("\n".join(["[clipseq]", *lines, ""]))
    path = os.pathsep.join(filter(None, (str(folder), str(source), os.environ.get("PYTHONPATH"))))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        # This leaves no files in the source.
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
    }


def run_its_tests(source, folder):
    """Run the tests in `source` as its author would, and return the finished process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
    return subprocess.run(
        command, cwd=source, env=environment(source, folder), capture_output=True, text=True
    )
