"""The nouns of an examination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..errors import MyLLMError

Status = Literal["ok", "warning", "problem", "absent"]
Section = Literal["Settings", "Connection", "Server", "Abilities"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name, the same in every examination: "tcp", "json_schema", ….
        status: "ok"; "warning": it works, and something about it will surprise you; "problem": it should
            work and does not; "absent": the server does not offer it, which is no fault.
        summary: what was seen, in a line.
        advice: what to do about it; every problem has one.
        seconds: how long it took, where that tells something.
        data: the same for programs.
    """

    check: str
    section: Section
    status: Status
    summary: str
    advice: str | None = None
    seconds: float | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was found out about one server."""

    url: str
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that something is wrong."""
        return tuple(finding for finding in self.findings if finding.status == "problem")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that something will surprise."""
        return tuple(finding for finding in self.findings if finding.status == "warning")

    @property
    def healthy(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    @property
    def reachable(self) -> bool:
        """Whether anything at all answered over HTTP."""
        return all(finding.section != "Connection" for finding in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON's types."""
        return {
            "url": self.url,
            "healthy": self.healthy,
            "reachable": self.reachable,
            "findings": [asdict(finding) for finding in self.findings],
        }


def failure(
    check: str,
    section: Section,
    error: MyLLMError,
    *,
    status: Status = "problem",
    advice: str | None = None,
) -> Finding:
    """Return the finding that an error is: its words, and its hint as the advice."""
    words = error.server_message
    summary = f"status {error.status}: {words}" if words and error.status else error.message.rstrip(".")
    hint = advice or error.hint
    if hint is None and status == "problem":
        hint = "The server's log tells more."
    data = {"error": type(error).__name__, "status": error.status}
    return Finding(check=check, section=section, status=status, summary=summary, advice=hint, data=data)
