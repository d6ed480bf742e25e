"""LoRA adapters as models: what peft computes with them, loaded at start and while the server runs."""

from __future__ import annotations

import httpx
import openai
import pytest
import torch

from myllm_engine.async_engine import AsyncEngine
from myllm_engine.config import EngineConfig
from myllm_engine.server.settings import ServerSettings

PROMPT = [5, 17, 300, 41, 8]


@pytest.fixture(scope="module")
def adapters(tiny_model, tmp_path_factory):
    """Let peft save two adapters with random weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.15)
        folders.append(tmp_path_factory.mktemp("adapter"))
        model.save_pretrained(folders[-1], save_embedding_layers=False)
    return [str(folder) for folder in folders]


@pytest.fixture(scope="module")
def lora_engine(tiny_model, adapters):
    engine = AsyncEngine(
        EngineConfig(
            model=str(tiny_model("llama")),
            dtype="float32",
            device="cpu",
            lora_adapters={"first": adapters[0]},
            max_loras=2,
            kv_cache_memory=2**24,
        )
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server(lora_engine, serve_engine):
    settings = ServerSettings(served_model_names=("tiny",), allow_runtime_lora=True)
    with serve_engine(lora_engine, settings) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        yield client


def peft_answers(tiny_model, adapter):
    """Return what transformers and peft say after `PROMPT`, greedily, and the last token's hidden state."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"), dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    ids = torch.tensor([PROMPT])
    made = model.generate(ids, do_sample=False, max_new_tokens=6, min_new_tokens=6)[0, len(PROMPT) :]
    with torch.inference_mode():
        hidden = model.base_model(ids).last_hidden_state[0, -1]
    return made.tolist(), torch.nn.functional.normalize(hidden, dim=0).tolist()


def complete(server, model, **more):
    body = {"model": model, "prompt": PROMPT, "max_tokens": 6, "min_tokens": 6, "temperature": 0}
    response = server.post("/v1/completions", json={**body, "return_token_ids": True, **more})
    assert response.status_code == 200, response.text
    assert response.json()["model"] == model
    return response.json()["choices"][0]["token_ids"]


def test_adapters_are_models(server, adapters):
    client = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="-", max_retries=0)
    base, first = client.models.list().data
    assert (base.id, base.parent) == ("tiny", None)
    assert (first.id, first.parent, first.root) == ("first", "tiny", adapters[0])
    assert client.models.retrieve("first").root == adapters[0]
    with pytest.raises(openai.NotFoundError, match="This server serves: tiny, first"):
        client.models.retrieve("second")


def test_a_request_by_an_adapters_name_uses_it(server, tiny_model, adapters):
    made, hidden = peft_answers(tiny_model, adapters[0])
    plain, _ = peft_answers(tiny_model, None)
    assert made != plain
    assert complete(server, "first") == made
    assert complete(server, "tiny") == plain
    answer = server.post("/v1/embeddings", json={"model": "first", "input": PROMPT}).json()
    assert answer["data"][0]["embedding"] == pytest.approx(hidden, abs=1e-3)


def test_a_conversation_by_an_adapters_name_uses_it(server):
    def answer(model):
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 6}
        body |= {"temperature": 0, "return_token_ids": True, "chat_template_kwargs": {}}
        response = server.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        prompt = response.json()["prompt_token_ids"]
        return prompt, response.json()["choices"][0]["token_ids"]

    prompt, made = answer("first")
    assert made == complete(server, "first", prompt=prompt, min_tokens=0)
    assert made != answer("tiny")[1]


def test_a_prompt_of_tgis_uses_the_adapter_that_it_names(server):
    def made(**adapter):
        parameters = {"max_new_tokens": 6, "details": True, **adapter}
        answer = server.post("/generate", json={"inputs": "Hello there", "parameters": parameters}).json()
        return [token["id"] for token in answer["details"]["tokens"]]

    assert made(adapter_id="first") == complete(server, "first", prompt="Hello there", min_tokens=0)
    assert made() == complete(server, "tiny", prompt="Hello there", min_tokens=0)
    assert made() != made(adapter_id="first")


def test_adapters_come_and_go(server, tiny_model, adapters):
    body = {"lora_name": "second", "lora_path": adapters[1]}
    response = server.post("/v1/load_lora_adapter", json=body)
    assert (response.status_code, response.text) == (
        200,
        "Success: LoRA adapter 'second' added successfully.",
    )
    assert complete(server, "second") == peft_answers(tiny_model, adapters[1])[0]
    assert server.post("/v1/load_lora_adapter", json=body).status_code == 400  # it is loaded already

    response = server.post("/v1/unload_lora_adapter", json={"lora_name": "second"})
    assert response.text == "Success: LoRA adapter 'second' removed successfully."
    assert server.post("/v1/completions", json={"model": "second", "prompt": "x"}).status_code == 404
    assert complete(server, "first") == peft_answers(tiny_model, adapters[0])[0]


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("load", {"lora_name": "x"}, "lora_path", "`lora_path` is required"),
        ("load", {"lora_name": "", "lora_path": "a"}, "lora_name", "at least 1"),
        ("load", {"lora_name": "tiny", "lora_path": "a"}, "lora_name", "is the model's own"),
        ("load", {"lora_name": "first", "lora_path": "a"}, "lora_name", "loaded already"),
        ("load", {"lora_name": "x", "lora_path": "/no/such"}, "lora_path", "/no/such"),
        ("load", {"lora_name": "x", "lora_path": "a", "load_inplace": True}, "load_inplace", "unload"),
        ("unload", {"lora_name": "nobody"}, "lora_name", "There is no LoRA adapter 'nobody'"),
    ],
)
def test_wrong_adapters_are_the_clients_fault(server, path, body, param, says):
    response = server.post(f"/v1/{path}_lora_adapter", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], says in error["message"]) == (param, True), error


def test_too_many_adapters_are_refused(server, adapters):
    load = {"lora_path": adapters[1]}
    assert server.post("/v1/load_lora_adapter", json={**load, "lora_name": "second"}).status_code == 200
    response = server.post("/v1/load_lora_adapter", json={**load, "lora_name": "third"})
    assert response.status_code == 400
    assert "No more than 2 LoRA adapters" in response.json()["error"]["message"]
    assert server.post("/v1/unload_lora_adapter", json={"lora_name": "second"}).status_code == 200


@pytest.mark.parametrize("path", ["load", "unload"])
def test_nobody_loads_adapters_unless_that_is_wanted(http, path):
    body = {"lora_name": "x", **({"lora_path": "a"} if path == "load" else {})}
    response = http.post(f"/v1/{path}_lora_adapter", json=body)
    assert response.status_code == 404
    assert "--allow-runtime-lora" in response.json()["error"]["message"]
