"""lm-eval's `local-completions` on our server scores texts as its `hf` backend does on transformers' model."""

from __future__ import annotations

import pytest

from myllm_engine.server.settings import ServerSettings

pytestmark = pytest.mark.slow

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " a city of bananas"),
    ("Q: What is 2 + 2?\nA:", " 4"),
    ("Die Würde des Menschen ist", " unantastbar."),
    ("", "Once upon a time there was a king"),
]


def asked(kind, pairs):
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=pair, idx=index) for index, pair in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def tokenizer_folder(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    engine.tokenizer._tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reference(dense, engine):
    """Return lm-eval's own backend on the model as transformers reads it."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    return huggingface.HFLM(
        pretrained=dense, tokenizer=engine.tokenizer._tokenizer, batch_size=1, device="cpu"
    )


@pytest.fixture(scope="module")
def described(serve):
    """A server that lets lm-eval do without a tokenizer of its own."""
    with serve(ServerSettings(enable_tokenizer_info_endpoint=True)) as live:
        yield live


@pytest.fixture(scope="module", params=["token ids", "texts", "the server's tokenizer"])
def ours(live, described, tokenizer_folder, request):
    api = pytest.importorskip("lm_eval.models.openai_completions")
    remote = request.param == "the server's tokenizer"
    model = api.LocalCompletionsAPI(
        base_url=f"{(described if remote else live).url}/v1/completions",
        model="smollm2",
        tokenizer=None if remote else tokenizer_folder,
        tokenized_requests=request.param != "texts",
        batch_size=2,
        max_length=512,
    )
    assert model.tokenizer_backend == ("remote" if remote else "huggingface")
    return model


def test_the_likelihood_of_continuations_is_the_same(ours, reference):
    expected = reference.loglikelihood(asked("loglikelihood", PAIRS))
    found = ours.loglikelihood(asked("loglikelihood", PAIRS))
    for (score, greedy), (right, is_greedy) in zip(found, expected, strict=True):
        assert score == pytest.approx(right, abs=0.01)
        assert greedy == is_greedy
