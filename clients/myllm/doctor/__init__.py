"""What is this server, what can it do, and what is wrong with it: `myllm doctor`, for programs.

from myllm import Client
from myllm.doctor import examine

report = examine(Client("http://localhost:8000"))
for finding in report.problems:
    print(finding.check, finding.summary, finding.advice)
"""

from __future__ import annotations

from .examine import examination, examine
from .report import Finding, Report, Section, Status
from .server import get
from .settings import Sources, sources

__all__ = [
    "Finding",
    "Report",
    "Section",
    "Sources",
    "Status",
    "examination",
    "examine",
    "get",
    "sources",
]
