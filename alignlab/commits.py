"""What the hub has of a name: its commit, and why the hub does not answer."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path

HUB_SECONDS = 5
"""How long the hub may take to name a commit."""
_unreachable: list[str] = []
"""Why the hub did not answer, once it has not."""


@functools.cache
def hub_commit(kind: str, name: str, revision: str | None) -> str | None:
    """The commit that a revision of a model or a dataset (`kind`) of the hub stands for, None: its main branch.

    What the copy on this machine is of comes before the hub's own answer, so that a run does not change under way. Where none
    of both is known: what was given.
    """
    if revision and len(revision) == 40 and not revision.strip("0123456789abcdef"):
        return revision
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import repo_folder_name

    try:
        kept = repo_folder_name(repo_id=name, repo_type=kind)
    except ValueError:  # no name that the hub could have; who loads the model says so
        return revision
    with suppress(OSError):
        if found := (Path(constants.HF_HUB_CACHE) / kept / "refs" / (revision or "main")).read_text(encoding="utf-8").strip():
            return found
    if constants.HF_HUB_OFFLINE or _unreachable:
        return revision
    try:
        answer = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=HUB_SECONDS)
    except Exception as error:  # its client raises a dozen kinds; who loads the model says what is wrong
        if not isinstance(error, HfHubHTTPError):
            _unreachable.append(str(error).partition("\n")[0].rstrip("."))
        return revision
    return answer.sha or revision


def hub_silence(kind: str, name: str, revision: str | None) -> str:
    """Why the hub tells nothing of a model or a dataset (`kind`) that is not on this machine; empty where it answers. Its own
    client would try for a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    hub_commit(kind, name, revision)
    if revision and not _unreachable:
        hub_commit(kind, name, None)  # a commit needs no answer, so it says nothing of the hub
    return _unreachable[0] if _unreachable else ""
