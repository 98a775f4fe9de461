"""Models of the Hugging Face hub: a local folder wins, or huggingface_hub brings one."""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from clipseq.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Return True if `name` has the form "owner/name" and no local file or folder has that name."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists()


def find_folder(
    name: str, *, revision: str | None, files: Sequence[str], option: str
) -> tuple[Path, bool]:
    """Return the local folder of a model, which huggingface_hub downloads if it has to.

    Args:
        name: a path, or "owner/name" of a model on the hub.
        revision: branch, tag or commit on the hub; None: its main branch.
        files: patterns of the files to download.
        option: name of the argument, for error texts.

    Returns:
        The folder, and True if it came from the hub. A path that does not exist is returned as it
        was given, unless it has the form of a hub id.

    Raises:
        ValueError: `revision` is given for a local folder.
        ImportError: huggingface_hub is needed and is not installed.
        CheckpointError: the hub has no such model or revision, or it cannot be reached and the
            model is not in the local cache.
    """
    if not is_hub_id(name):
        if revision is not None:
            raise ValueError(
                f"revision must be None for a local folder, got {revision!r} for {name!r}; "
                "leave it out"
            )
        return Path(name), False
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ImportError(
            f"{option} {name!r} is not a local folder, and a model of the hub needs "
            "huggingface_hub: pip install 'clipseq[hf]'"
        )
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(files)
        )
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{option} must be a local folder or a model of the hub, got {name!r}, which is "
            "neither; check the name, or log in with `hf auth login` if it is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"revision must be a branch, a tag or a commit of {name!r}, got {revision!r}"
        ) from error
    except (errors.HFValidationError, OSError) as error:
        # The errors of the hub are OSErrors, as are those of the network and of the disk.
        raise CheckpointError(
            f"{option} must be a local folder or a model of the hub that can be downloaded, got "
            f"{name!r}: {_first_line(error)}; connect to the network, or pass the path of a copy"
        ) from error
    return Path(str(folder)), True


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
