"""`/invocations`: whatever is asked, the answer is that of the body's own endpoint."""

from __future__ import annotations

import pytest

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "temperature": 0}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "One, two,", "max_tokens": 3, "temperature": 0}),
        ("/v1/embeddings", {"input": "One"}),
        ("/", {"inputs": "One, two,", "parameters": {"max_new_tokens": 3}}),
    ],
)
def test_invocations_answer_as_the_bodys_endpoint(http, path, body):
    def answer(path):
        response = http.post(path, json=body)
        assert response.status_code == 200, response.text
        answer = response.json()
        if isinstance(answer, dict):
            answer.pop("id")
            answer.pop("created")
        return answer

    assert answer("/invocations") == answer(path)


def test_invocations_stream(http):
    response = http.post("/invocations", json={**CHAT, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "`messages` (as for /v1/chat/completions)"),
        ({**CHAT, "temperature": -1}, 400, "`temperature`"),
        ({"prompt": "x", "promt": "y"}, 400, "did you mean `prompt`?"),
        ({"inputs": "x", "parameters": {"temperature": 0}}, 422, "`temperature` must be strictly positive"),
        ({"inputs": "x", "parameter": {}}, 422, "did you mean `parameters`?"),
    ],
)
def test_wrong_invocations_are_explained_in_the_bodys_dialect(http, body, status, says):
    response = http.post("/invocations", json=body)
    assert response.status_code == status
    error = response.json()["error"]
    if status == 422:
        assert response.json()["error_type"] == "validation"
        assert says in error
    else:
        assert error["type"] == "BadRequestError"
        assert says in error["message"]
