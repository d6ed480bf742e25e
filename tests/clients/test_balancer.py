"""The servers' states: breakers that open, try and close, and what a try may say of a server."""

from __future__ import annotations

import pytest

import myllm
from myllm import Breaker, Endpoint
from myllm.balancer import Balancer
from myllm.errors import (
    ConnectError,
    ConstraintNotEnforced,
    IncompleteStreamError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
)
from myllm.policies import get_policy

A, B = Endpoint("http://a"), Endpoint("http://b")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def balancer(clock) -> Balancer:
    return Balancer((A, B), breaker=Breaker(failures=2, cooldown=1, longest=3), clock=clock)


def fail(balancer: Balancer, endpoint: Endpoint, error: Exception, *, times: int = 1) -> None:
    for _ in range(times):
        lease = balancer.take({A, B} - {endpoint})
        assert lease.endpoint == endpoint
        lease.ended(error)


def states(balancer: Balancer) -> list[str]:
    return [status.state for status in balancer.status()]


def test_failures_in_a_row_open_the_breaker(balancer):
    fail(balancer, A, ServerError("no", status=500))
    assert states(balancer) == ["closed", "closed"]
    fail(balancer, A, ServerError("no", status=500))
    assert states(balancer) == ["open", "closed"]
    assert [balancer.take().endpoint for _ in range(4)] == [B] * 4


def test_a_success_in_between_counts_anew(balancer):
    for _ in range(3):
        fail(balancer, A, ServerError("no", status=500))
        balancer.take({B}).succeeded()
    assert states(balancer) == ["closed", "closed"]


def test_a_refused_connection_opens_it_at_once(balancer):
    fail(balancer, A, ConnectError("refused"))
    assert states(balancer)[0] == "open"
    assert "refused" in balancer.status()[0].last_error


@pytest.mark.parametrize(
    "error",
    [RateLimitError("busy", status=429), RequestTimeoutError("mine", phase="total"), ValueError("mine")],
)
def test_what_is_not_the_server_s_fault_does_not(balancer, error):
    fail(balancer, A, error, times=5)
    assert states(balancer)[0] == "closed"
    assert balancer.status()[0].in_flight == 0


def test_one_trial_at_a_time_after_the_cooldown_and_a_failed_one_doubles_it(balancer, clock):
    fail(balancer, A, ConnectError("refused"))
    clock.now += 0.9
    assert balancer.take().endpoint == B
    clock.now += 0.2
    trial = balancer.take()
    assert trial.endpoint == A
    assert states(balancer)[0] == "half_open"
    assert [balancer.take().endpoint for _ in range(3)] == [B] * 3
    trial.ended(ConnectError("refused"))
    assert balancer.status()[0].reopens_in == pytest.approx(2)
    clock.now += 2.1
    balancer.take().ended(ConnectError("refused"))
    assert balancer.status()[0].reopens_in == pytest.approx(3)  # `longest`
    clock.now += 3.1
    balancer.take().succeeded()
    assert states(balancer) == ["closed", "closed"]


def test_a_trial_that_was_cancelled_says_nothing_and_the_next_call_is_one(balancer, clock):
    fail(balancer, A, ConnectError("refused"))
    clock.now += 1.1
    balancer.take().released()
    assert states(balancer)[0] == "open"
    assert balancer.take().endpoint == A


def test_a_trial_that_is_a_stream_ends_when_it_begins(balancer, clock):
    fail(balancer, A, ConnectError("refused"))
    clock.now += 1.1
    stream = balancer.take()
    stream.began()
    assert states(balancer) == ["closed", "closed"]
    assert balancer.status()[0].in_flight == 1
    assert {balancer.take().endpoint for _ in range(2)} == {A, B}


def test_when_all_are_open_calls_go_out_all_the_same(balancer):
    for endpoint in (A, B):
        fail(balancer, endpoint, ConnectError("refused"))
    assert {balancer.take().endpoint for _ in range(4)} == {A, B}
    assert {balancer.take({A}).endpoint for _ in range(4)} == {B}


def test_a_lease_ends_once(balancer):
    lease = balancer.take()
    for _ in range(3):
        lease.succeeded()
        lease.failed(ServerError("late", status=500))
    assert balancer.status()[0].in_flight == 0
    assert balancer.status()[0].failures == 0


def test_latency_is_a_moving_average(balancer, clock):
    for seconds in (1.0, 2.0):
        lease = balancer.take({B})
        clock.now += seconds
        lease.succeeded()
    assert balancer.status()[0].latency == pytest.approx(1.1)


def test_without_a_breaker_no_server_is_left_alone(clock):
    balancer = Balancer((A, B), breaker=None, clock=clock)
    fail(balancer, A, ConnectError("refused"), times=9)
    assert states(balancer) == ["closed", "closed"]
    assert balancer.status()[0].failures == 9


def test_what_a_server_was_is_forgotten_when_it_goes(balancer):
    balancer.servers()[0].info = myllm.ServerInfo(dialect="vllm")
    fail(balancer, A, ConnectError("refused"))
    assert balancer.servers()[0].info is None


def test_a_breaker_that_makes_no_sense_is_refused():
    with pytest.raises(myllm.InvalidParameterError, match="cooldown"):
        Breaker(cooldown=5, longest=1)


def test_calls_on_their_way_when_a_server_dies_do_not_multiply_its_cooldown(balancer):
    leases = [balancer.take({B}) for _ in range(12)]
    for lease in leases:
        lease.ended(ConnectError("refused"))
    assert balancer.status()[0].reopens_in == pytest.approx(1)


def test_an_old_call_does_not_end_a_trial(balancer, clock):
    old = balancer.take({B})
    fail(balancer, A, ConnectError("refused"))
    clock.now += 1.1
    balancer.take()  # the trial
    old.released()
    assert states(balancer)[0] == "half_open"
    assert {balancer.take().endpoint for _ in range(3)} == {B}


def test_a_server_whose_streams_all_break_is_left_alone(balancer, clock):
    for _ in range(2):
        lease = balancer.take({B})
        lease.began()
        lease.ended(IncompleteStreamError("broke off"))
    assert states(balancer)[0] == "open"
    clock.now += 1.1
    trial = balancer.take()
    trial.began()
    trial.ended(IncompleteStreamError("broke off"))
    assert states(balancer)[0] == "open"


def test_an_answer_that_breaks_its_constraint_is_no_failure_of_the_server(balancer):
    fail(balancer, A, ConstraintNotEnforced("x", answer=None, index=0, text=""), times=5)
    assert balancer.status()[0].failures == 0


def test_a_good_health_check_does_not_close_what_failing_calls_opened(balancer):
    fail(balancer, A, ServerError("no", status=500), times=2)
    balancer.probed(A, None)
    assert states(balancer)[0] == "open"
    fail(balancer, B, ConnectError("refused"))
    balancer.probed(B, None)
    assert states(balancer)[1] == "closed"


def test_one_url_with_several_keys_is_several_servers():
    keys = [Endpoint("http://a", api_key=key) for key in ("1", "2", "3")]
    for policy in ("round_robin", "weighted", "least_in_flight", "affinity"):
        balancer = Balancer(keys, get_policy(policy))
        used = []
        for number in range(30):
            lease = balancer.take(key=f"{number}" if policy == "affinity" else None)
            used.append(lease.endpoint.api_key)
            lease.succeeded()
        assert set(used) == {"1", "2", "3"}


def test_a_stream_collected_under_the_balancer_s_lock_does_not_block_it():
    held = []

    class Collecting:
        keyed = False

        def choose(self, candidates, key):
            if held:
                held.pop().released()  # what a garbage collection does wherever it happens to run
            return 0

    balancer = Balancer((A, B), Collecting())
    held.append(balancer.take())
    balancer.take().succeeded()
    assert balancer.status()[0].in_flight == 0


def test_health_checks_that_keep_failing_say_nothing_new(balancer, clock):
    for _ in range(20):
        balancer.probed(A, ConnectError("refused"))
        clock.now += 0.3
    assert balancer.status()[0].reopens_in <= 1
    assert balancer.take().endpoint == B
    balancer.probed(A, None)
    assert states(balancer)[0] == "closed"
