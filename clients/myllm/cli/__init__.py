"""The `myllm` command. Its commands are entry points of the group `myllm.commands`.

The SDK itself needs no command-line library; without one, the command says which extra to install.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the `myllm` command."""
    try:
        from ._app import build
    except ImportError as exc:
        sys.stderr.write(
            f"myllm: the command line needs an extra ({exc}).\n"
            "  pip install 'myllm-suite[cli]'      # or [engine], which has it too and can serve models\n"
        )
        raise SystemExit(1) from None
    build()()
