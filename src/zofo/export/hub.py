"""Uploads to the Hub; only on request."""

from __future__ import annotations

from typing import Any

from zofo.errors import RunError, first_line
from zofo.export.export import ExportResult


def push(exported: ExportResult, repo: str, private: bool = True, api: Any = None) -> str:
    """Upload an export with its model card, as one commit.

    Args:
        repo: id of the repository, `owner/name`; created if it does not exist.
        api: the client; by default `huggingface_hub.HfApi()`, which uses the token of `hf auth login`.

    Returns:
        The address of the repository.

    Raises:
        RunError: the id is not valid, or the Hub refuses or cannot be reached; the export itself is kept.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi() if api is None else api
    files: dict[str, str | bytes] = {"model.zofo": str(exported.path)}
    if exported.kind != "patch":
        files = {name: str(exported.path / name) for name in exported.files}  # not what else lies in the folder
    files["README.md"] = exported.card.replace("REPO", repo).encode()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
        api.create_commit(made.repo_id, additions, commit_message=f"{exported.kind} by zofo")
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise RunError(
            f"cannot upload to {repo!r}: {first_line(error)}",
            f"log in with: hf auth login; what was exported is in {str(exported.path)!r}",
        ) from error
    return str(made)
