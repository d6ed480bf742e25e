"""The file of `--config`."""

from __future__ import annotations

import pytest

from myllm_engine.config import EngineConfig, SpeculativeConfig
from myllm_engine.server.settings import ServerSettings


@pytest.fixture
def from_file(configured, tmp_path):
    """Return a function that runs the command with a file of this content."""

    def configure(content: str):
        file = tmp_path / "server.yaml"
        file.write_text(content)
        return configured("--config", str(file))

    return configure


def test_values_of_all_kinds(from_file):
    made = from_file(
        """
        # vLLM's example, and more
        model: org/name
        host: "127.0.0.1"
        port: 6379
        uvicorn-log-level: "info"
        served-model-name:
          - one
          - two
        max_model_len: 2048
        gpu-memory-utilization: 0.5
        enable-prefix-caching: false
        trust-remote-code: true
        tokenizer: null
        revision: 2024-05-06
        speculative-config:
          method: ngram
          num_speculative_tokens: 3
        lora-modules:
          - name: sql
            path: /loras/sql
          - fr=org/fr
        max-body-size: 1000
        api-key: secret
        """
    )
    assert made.engine == EngineConfig(
        model="org/name",
        max_model_len=2048,
        gpu_memory_utilization=0.5,
        enable_prefix_caching=False,
        trust_remote_code=True,
        revision="2024-05-06",
        speculative=SpeculativeConfig(num_tokens=3),
        lora_adapters={"sql": "/loras/sql", "fr": "org/fr"},
        max_loras=2,
    )
    assert made.settings == ServerSettings(
        served_model_names=("one", "two"), max_body_size=1000, api_keys=("secret",)
    )
    assert (made.listen.port, made.process["log_level"]) == (6379, "info")


def test_an_empty_file_changes_nothing(from_file):
    assert from_file("# nothing").engine == EngineConfig()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "max-model-length: 9",
            "holds `max-model-length`, which is no option; did you mean `max-model-len`?",
        ),
        ("zzzzzz: 1", "holds `zzzzzz`, which is no option"),
        ("config: other.yaml", "holds `config`, which is no option"),
        ("enable-lora: 1", "`enable-lora` in"),
        ("port: true", "takes a value, not true"),
        ("port: many", "--port"),
        ("max-model-len: 1\nmax_total_tokens: 2", "a second time"),
        ("port: 1\nseed: 2\nport: 3", "`port` stands there a second time"),
        ("speculative-config:\n  method: ngram\n  method: draft", "`method` stands there a second time"),
        ("- port", "must hold options as `name: value`"),
        ("a: [", "cannot be read"),
    ],
)
def test_mistakes(run, tmp_path, content, says):
    file = tmp_path / "server.yaml"
    file.write_text(content)
    done = run("--config", str(file), COLUMNS="1000")
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())


def test_a_file_that_is_not_there(run):
    done = run("--config", "/no/such.yaml", COLUMNS="1000")
    assert done.exit_code == 2
    assert "'/no/such.yaml' cannot be read" in done.output
