"""Several values after one option, and where a wrong value is said to come from."""

from __future__ import annotations

import pytest


def said(result) -> str:
    """Return what a command that failed wrote, without the frame that is drawn around it."""
    assert result.exit_code == 2, result.output
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("m", "--served-model-name", "a", "b", "c"),
        ("m", "--served-model-name", "a", "b", "c", "--port", "1"),
        ("m", "--served_model_name", "a", "--port", "1", "--served-model-name", "b", "c"),
        ("m", "--served-model-name=a", "b", "c"),
        ("--served-model-name", "a", "b", "c", "--model", "m"),
        ("--served-model-name", "a", "b", "--model-id=m", "--served-model-name", "c"),
        ("--served-model-name", "a,b,c", "m"),
        ("--served-model-name", "a", "--served-model-name", "b,c", "--port", "1", "m"),
        ("--served-model-name", "a", "--served-model-name", "b", "--served-model-name", "c", "--", "m"),
    ],
)
def test_names_are_taken_up_to_the_next_option(configured, arguments):
    made = configured(*arguments)
    assert made.engine.model == "m"
    assert made.settings.served_model_names == ("a", "b", "c")
    assert made.listen.port == (1 if "--port" in arguments else 8000)


def test_so_is_every_option_that_may_be_repeated(configured):
    made = configured(
        *("m", "--api-key", "k1", "k2", "--lora-modules", "x=1", "y=2", "--allowed-origins", "https://a", "https://b"),
        *("--allow-credentials", "--middleware", "starlette.middleware.gzip.GZipMiddleware"),
    )  # fmt: skip
    assert made.settings.api_keys == ("k1", "k2")
    assert made.engine.lora_adapters == {"x": "1", "y": "2"}
    assert made.settings.http.allowed_origins == ("https://a", "https://b")


def test_a_word_after_another_option_is_the_model_or_too_much(configured, run):
    assert configured("--api-key", "k", "m").engine.model == "m"
    assert configured("--port", "1", "m").engine.model == "m"
    assert configured("--no-enable-ui", "m").engine.model == "m"
    assert "unexpected extra argument(s) (b)" in said(run("a", "--port", "1", "b", COLUMNS="200"))


def test_what_may_be_the_model_or_a_value_is_asked(run):
    words = said(run("--served-model-name", "a", "b", "c", COLUMNS="200"))
    assert "'--served-model-name': 'b' and 'c' may be further values" in words
    assert "`MODEL --served-model-name VALUE VALUE`" in words


def test_a_wrong_value_is_told_with_its_place(run, tmp_path):
    file = tmp_path / "server.yaml"
    file.write_text("port: many")
    assert "for '--port' / '-p': Input should be" in said(run("--port", "many", PORT="1", COLUMNS="200"))
    assert "for '--port' / '-p' (variable PORT: 'many'): Input" in said(run(PORT="many", COLUMNS="200"))
    words = said(run(PORT="1", MYLLM_PORT="many", COLUMNS="200"))
    assert "(variable MYLLM_PORT: 'many'): Input should be" in words
    assert "Kubernetes" not in words
    assert f"(file '{file}': 'many'): Input should be" in said(run("--config", str(file), COLUMNS="400"))


def test_what_kubernetes_puts_into_our_variable_is_explained(configured, run):
    link = "tcp://10.96.0.1:8000"
    words = said(run(MYLLM_PORT=link, COLUMNS="200"))
    assert f"(variable MYLLM_PORT: '{link}'): Input should be" in words
    assert "Kubernetes sets this variable" in words
    assert configured("--port", "9", MYLLM_PORT=link).listen.port == 9


def test_a_misspelt_variable_is_told_of(configured):
    made = configured(MYLLM_MAX_MODEL_LENGTH="9", MYLLM_BASE_URL="http://x", MYLLM_SERVICE_HOST="10.96.0.1")
    assert made.engine.max_model_len is None
    assert made.said == (
        "myllm serve: MYLLM_MAX_MODEL_LENGTH is the variable of no option; did you mean MYLLM_MAX_MODEL_LEN?\n"
    )
