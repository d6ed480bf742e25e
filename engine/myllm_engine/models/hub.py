"""Reach the hub, or do without. Imports no torch."""

from __future__ import annotations

from ..errors import ModelLoadError

_TIMEOUT = 5.0


def locate(model: str, revision: str | None) -> str:
    """Return where to load a hub id from: itself, or its cached folder when the hub is out of reach.

    Asking once comes first, as each file of a download is tried six times over half a minute.

    Raises:
        ModelLoadError: the hub cannot be reached, and the model is not in the local cache.
    """
    import httpx
    from huggingface_hub import constants, get_session, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
        return model
    except (httpx.TransportError, OfflineModeIsEnabled) as error:
        reason = str(error) or type(error).__name__
    try:
        return snapshot_download(model, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        wanted = model if revision is None else f"{model}@{revision}"
        raise ModelLoadError(
            f"{wanted!r} is not in the local cache, and the hub at {constants.ENDPOINT} cannot be reached "
            f"({reason}): download it where there is a network, and give its folder as `model`"
        ) from error
