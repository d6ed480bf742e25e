"""What an adapter says when its framework cannot be imported."""

from __future__ import annotations

from myllm import MissingExtraError


def missing_extra(adapter: str, extra: str, exc: ImportError) -> MissingExtraError:
    """Return the error for an adapter whose framework is not installed, or is installed but broken.

        try:
            import litellm
        except ImportError as exc:
            raise missing_extra(__name__, "litellm", exc) from exc

    Args:
        adapter: the adapter's module name.
        extra: the extra of `myllm-suite` that brings the framework.
        exc: what the import raised. A missing module other than the framework itself (a dependency that
            is not there, a name that moved) is told too, for then the framework is there but unusable.
    """
    return MissingExtraError(
        f"`{adapter}` cannot be used: {exc}.",
        hint=f"Install what it needs: pip install 'myllm-suite[{extra}]'.",
    )
