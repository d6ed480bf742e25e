"""Routing policies: which of the servers that can take a call gets it.

A policy is asked under the balancer's lock and must not block. Further ones are classes of the same shape,
given as `policy=` or registered as an entry point of the group `myllm.policies`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Sequence
from typing import Protocol

from .errors import InvalidParameterError


class Candidate(Protocol):
    """What a policy may look at."""

    @property
    def name(self) -> str:
        """The server's URL, made unlike every other one's."""

    @property
    def weight(self) -> float:
        """Its share of the work."""

    @property
    def in_flight(self) -> int:
        """Its unanswered requests of this client."""


class Policy(Protocol):
    """Chooses among servers.

    `keyed` says that it looks at keys, so that one is made from each call's beginning.
    """

    keyed: bool

    def choose(self, candidates: Sequence[Candidate], key: str | None) -> int:
        """Return the index of the server that gets the next call.

        Args:
            candidates: at least one; the same servers come in the same order each time.
            key: what calls that belong together have in common, or None.
        """


class RoundRobin:
    """One after the other, whatever their weights."""

    keyed = False

    def __init__(self) -> None:
        self._last: str | None = None

    def choose(self, candidates: Sequence[Candidate], key: str | None) -> int:
        """See `Policy.choose`. The one after the last one chosen; names are compared, for some may be out."""
        names = [candidate.name for candidate in candidates]
        index = (names.index(self._last) + 1) % len(names) if self._last in names else 0
        self._last = names[index]
        return index


class Weighted:
    """In proportion to the weights, evenly spread (nginx's smooth weighted round robin)."""

    keyed = False

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def choose(self, candidates: Sequence[Candidate], key: str | None) -> int:
        """See `Policy.choose`."""
        for candidate in candidates:
            self._credit[candidate.name] = self._credit.get(candidate.name, 0.0) + candidate.weight
        index = max(range(len(candidates)), key=lambda i: self._credit[candidates[i].name])
        self._credit[candidates[index].name] -= sum(candidate.weight for candidate in candidates)
        return index


class LeastInFlight:
    """The one with the fewest unanswered requests for its weight; among equals, in turn."""

    keyed = False

    def __init__(self) -> None:
        self._turns = RoundRobin()

    def choose(self, candidates: Sequence[Candidate], key: str | None) -> int:
        """See `Policy.choose`."""
        loads = [candidate.in_flight / candidate.weight for candidate in candidates]
        least = [i for i, load in enumerate(loads) if load == min(loads)]
        return least[self._turns.choose([candidates[i] for i in least], key)]


OVERLOAD = 1.25
"""How many times its share of the calls in flight a server gets by affinity, before others take the rest."""
SLACK = 4
"""Calls in flight that a server gets beyond that: so few are no load."""


class Affinity:
    """Calls of one session or with one beginning go to one server, whose prefix cache is then warm.

    Weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): when a server goes, only its own keys
    move. Calls without a key go to the least busy server.
    """

    keyed = True

    def __init__(self) -> None:
        self._rest = LeastInFlight()

    def choose(self, candidates: Sequence[Candidate], key: str | None) -> int:
        """See `Policy.choose`."""
        if key is None:
            return self._rest.choose(candidates, key)
        # A key that too many calls share must not drown its server: the next one takes what is over its share
        # (consistent hashing with bounded loads, Mirrokni, Thorup and Zadimoghaddam, 2016).
        load = sum(candidate.in_flight for candidate in candidates) + 1
        weight = sum(candidate.weight for candidate in candidates)
        free = [
            i
            for i, candidate in enumerate(candidates)
            if candidate.in_flight < SLACK + OVERLOAD * load * candidate.weight / weight
        ]
        return max(free, key=lambda i: _score(candidates[i], key))


def _score(candidate: Candidate, key: str) -> float:
    digest = hashlib.blake2b(
        f"{candidate.name}\n{key}".encode("utf-8", "surrogatepass"), digest_size=8
    ).digest()
    share = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)  # in (0, 1)
    return -candidate.weight / math.log(share)


POLICIES: dict[str, type[Policy]] = {
    "round_robin": RoundRobin,
    "least_in_flight": LeastInFlight,
    "affinity": Affinity,
    "weighted": Weighted,
}
"""The policies that come with the SDK, by name."""


def get_policy(policy: str | Policy) -> Policy:
    """Return a new policy by name, or the one given.

    Raises:
        InvalidParameterError: no policy of that name.
    """
    if not isinstance(policy, str):
        if isinstance(policy, type) or not callable(getattr(policy, "choose", None)):
            raise InvalidParameterError(
                f"`policy={policy!r}` is neither the name of a policy nor one.", param="policy"
            )
        return policy
    if policy in POLICIES:
        return POLICIES[policy]()
    plugins = {entry.name: entry for entry in importlib.metadata.entry_points(group="myllm.policies")}
    if policy in plugins:
        made: Policy = plugins[policy].load()()
        return made
    known = ", ".join(map(repr, [*POLICIES, *plugins]))
    raise InvalidParameterError(f"`policy={policy!r}` is not known: use one of {known}.", param="policy")
