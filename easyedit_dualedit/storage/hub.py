"""Repositories of the Hugging Face hub: which texts name one, their files, and what went wrong."""

import contextlib
import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from easyedit_dualedit.errors import HubError, shortened

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FOLDERS = ("adapters", "outputs", "edits")
"""Folders that this package writes to: a path that begins with one is never asked of the hub, or
whoever has that name there could hand out adapters for a training that was not made yet."""

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def names_repository(text: str) -> bool:
    """Return whether a text can name a repository, such as user/name, and is no local path."""
    if not _NAME.fullmatch(text):
        return False
    owner = text.partition("/")[0]
    return owner not in _FOLDERS and not Path(text).exists() and not Path(owner).is_dir()


def require_name(text: str) -> None:
    """Check that a text names a repository.

    Raises:
        HubError: if it does not.
    """
    if not _NAME.fullmatch(text):
        raise HubError(f"{shortened(text)!r} names no repository of the hub; give USER/NAME")


def downloaded(name: str, files: Sequence[str], **options: Any) -> Path:
    """Return the folder of the hub's cache with those of some files that a repository has.

    What is there already is not fetched again.

    Args:
        name: of the repository.
        files: their names, or patterns of them.
        options: of `huggingface_hub.snapshot_download`, such as revision and token.

    Raises:
        HubError: if there is no such repository, or it cannot be read.
    """
    require_name(name)
    with told(name):
        return Path(snapshot_download(name, allow_patterns=list(files), **options))


def uploaded(
    folder: Path,
    name: str,
    *,
    files: Sequence[str],
    message: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Send files of a folder to a repository in one commit, and return its address.

    The repository is made if it is not there. Files that it has besides stay.

    Args:
        folder: of the files.
        name: of the repository.
        files: paths within the folder.
        message: of the commit.
        private: whether a new repository is; None is what the account has as its default.
        revision: branch, made if it is not there; None is the main one.
        token: instead of the one that the machine is logged in with.

    Raises:
        HubError: if nothing could be sent.
    """
    require_name(name)
    api = HfApi(token=token, library_name="easyedit-dualedit")
    with told(name, writing=True):
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in files],
            commit_message=message,
            revision=revision,
        )
    return str(commit.commit_url)


@contextlib.contextmanager
def told(name: str, *, writing: bool = False) -> Iterator[None]:
    """Turn what huggingface_hub raises within into one line about a repository.

    Args:
        name: of the repository.
        writing: whether something is to be changed there.

    Raises:
        HubError: saying what went wrong, and what to do.
    """
    try:
        yield
    except Exception as error:
        reason = _reason(error, name, writing)
        if reason is None:
            raise
        raise HubError(f"{name}: {reason}") from error


def _reason(error: Exception, name: str, writing: bool) -> str | None:
    """Return in words why the hub did not answer as asked; None if it is not about the hub."""
    line = shortened(" ".join(str(error).split()))
    causes = [error, error.__cause__, error.__context__]
    if any(isinstance(each, OfflineModeIsEnabled) for each in causes):
        return "HF_HUB_OFFLINE is set, and this machine has no copy; unset it"
    if isinstance(error, HFValidationError):
        return f"no name of a repository ({line})"
    if isinstance(error, LocalTokenNotFoundError):
        return f"needs a token; {_LOG_IN}"
    if isinstance(error, GatedRepoError):
        return f"gated; ask for access on its page, huggingface.co/{name}, then {_LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has none of this name, or it is private; look at the name, {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return "has no such revision; give a branch, a tag or a commit that it has"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HfHubHTTPError) and status in (401, 403):
        may_not = "write to it" if writing else "read it"
        return f"the token may not {may_not}, or there is none; {_LOG_IN}"
    if isinstance(error, HfHubHTTPError):
        return f"the hub refused ({line})"
    origin = type(error).__module__.partition(".")[0]
    if isinstance(error, LocalEntryNotFoundError | ConnectionError) or origin.startswith(
        ("httpx", "httpcore", "requests")
    ):
        return "the hub cannot be reached, and this machine has no copy; look at the network"
    return None
