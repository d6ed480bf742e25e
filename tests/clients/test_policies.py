"""Which server gets the next call."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

import myllm
from myllm import Client
from myllm.policies import Affinity, LeastInFlight, Policy, RoundRobin, Weighted, get_policy


@dataclass
class Candidate:
    name: str
    weight: float = 1.0
    in_flight: int = 0


A, B, C = Candidate("http://a"), Candidate("http://b"), Candidate("http://c")


def choices(policy: Policy, candidates: list[Candidate], times: int) -> list[str]:
    return [candidates[policy.choose(candidates, None)].name[-1] for _ in range(times)]


def test_round_robin_goes_on_where_it_was_when_servers_come_and_go():
    policy = RoundRobin()
    assert choices(policy, [A, B, C], 4) == ["a", "b", "c", "a"]
    assert choices(policy, [A, C], 2) == ["c", "a"]
    assert choices(policy, [A, B, C], 2) == ["b", "c"]


def test_weights_are_shares_evenly_spread():
    """nginx's example: 5, 1, 1 gives a a b a c a a, not a a a a a b c."""
    servers = [Candidate("http://a", 5), Candidate("http://b", 1), Candidate("http://c", 1)]
    assert choices(Weighted(), servers, 7) == ["a", "a", "b", "a", "c", "a", "a"]


def test_the_least_busy_for_its_weight_is_chosen_and_equals_take_turns():
    busy = [Candidate("http://a", 1, 2), Candidate("http://b", 4, 3), Candidate("http://c", 1, 1)]
    assert choices(LeastInFlight(), busy, 1) == ["b"]
    assert Counter(choices(LeastInFlight(), [A, B, C], 30)) == {"a": 10, "b": 10, "c": 10}


def test_affinity_moves_only_the_keys_of_a_server_that_goes():
    policy, servers = Affinity(), [A, B, C]
    keys = [f"session {i}" for i in range(3000)]
    before = {key: servers[policy.choose(servers, key)].name for key in keys}
    shares = Counter(before.values())
    assert all(900 < share < 1100 for share in shares.values())
    left = [A, C]
    after = {key: left[policy.choose(left, key)].name for key in keys}
    assert all(after[key] == before[key] for key in keys if before[key] != B.name)


def test_affinity_obeys_weights():
    servers = [Candidate("http://a", 3.0), Candidate("http://b", 1.0)]
    found = Counter(servers[Affinity().choose(servers, f"{i}")].name for i in range(4000))
    assert found["http://a"] / found["http://b"] == pytest.approx(3, rel=0.15)


def test_an_unknown_policy_names_the_known_ones():
    with pytest.raises(myllm.InvalidParameterError, match="'least_in_flight'"):
        get_policy("random")


ANSWER = {"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]}


def test_calls_of_a_session_go_to_one_server_whatever_the_policy(wire, other_wire):
    wire.answers(ANSWER)
    other_wire.answers(ANSWER)
    with Client([wire.url, other_wire.url], model="m", dialect="vllm") as client:
        for number in range(12):
            client.chat(f"{number}", session="one user's")
        assert sorted((len(wire.seen), len(other_wire.seen))) == [0, 12]
        for number in range(40):
            client.chat("x", session=f"{number}")
        assert min(len(wire.seen), len(other_wire.seen)) > 5


def test_turns_of_one_conversation_go_to_one_server_by_its_beginning(wire, other_wire):
    wire.answers(ANSWER)
    other_wire.answers(ANSWER)
    with Client([wire.url, other_wire.url], model="m", dialect="vllm", policy="affinity") as client:
        conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        for number in range(10):
            client.chat(conversation)
            conversation += [
                {"role": "assistant", "content": "Hi"},
                {"role": "user", "content": f"And {number}?"},
            ]
    assert sorted((len(wire.seen), len(other_wire.seen))) == [0, 10]


def test_a_class_of_the_user_s_is_a_policy(wire, other_wire):
    class Last:
        def choose(self, candidates, key):
            return len(candidates) - 1

    other_wire.answers(ANSWER)
    with Client([wire.url, other_wire.url], model="m", dialect="vllm", policy=Last()) as client:
        for _ in range(3):
            client.chat("x")
    assert (len(wire.seen), len(other_wire.seen)) == (0, 3)


def test_a_session_that_everybody_shares_does_not_drown_its_server():
    servers = [Candidate("http://a"), Candidate("http://b"), Candidate("http://c")]
    policy = Affinity()
    for _ in range(90):
        servers[policy.choose(servers, "one")].in_flight += 1
    loads = sorted(server.in_flight for server in servers)
    assert loads[-1] < 1.25 * 30 + 5
    assert sum(loads) == 90


@pytest.mark.parametrize("policy", [RoundRobin, 5, object()])
def test_what_is_no_policy_is_said(policy):
    with pytest.raises(myllm.InvalidParameterError, match="policy"):
        Client("http://localhost:1", policy=policy)
