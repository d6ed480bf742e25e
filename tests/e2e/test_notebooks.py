"""Every notebook runs from its first cell to its last, and is stored without output."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_without_output_and_begins_with_a_heading(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


def test_the_quickstart_tells_its_story():
    texts = _run("quickstart")
    assert sum("The capital of France is Paris" in text for text in texts) >= 2
    assert any("Did you mean `temperature`?" in text for text in texts)
    assert any("'positive'" in text or "'negative'" in text for text in texts)
    assert any("answer='Paris'" in text for text in texts)
    assert any("teacher" in text and "child" in text for text in texts)


def test_autogen_s_people_look_up_prices_talk_and_are_counted():
    texts = _run("autogen")
    assert any(f'price({{"item": "{item}"}})' in text for text in texts for item in ("coffee", "tea", "cake"))
    talk = next(text for text in texts if "Which cake do you like best?" in text)
    assert len(re.findall(r"^ *(waiter|cook|regular): .", talk, re.MULTILINE)) == 6
    counts = next(text for text in texts if "all calls" in text)
    prompts = [int(row.split()[1]) for row in counts.splitlines()[1:-1]]
    assert len(prompts) >= 3
    assert sum(prompts) == int(counts.splitlines()[-1].split()[2])
    assert any("second run: 0 calls to the server" in text for text in texts)


def test_no_call_fails_when_both_servers_of_a_router_die():
    texts = _run("litellm")
    assert "48 questions, 48 answers" in "".join(texts)
    (table,) = [text for text in texts if text.startswith("answered by")]
    assert all(who in table for who in ("first server", "second server", "this process"))
    assert any("No server answers at" in text for text in texts)


def test_dspy_compiles_a_program_that_is_better():
    texts = _run("dspy")
    (shown,) = re.findall(r"\{'no examples'[^}]*\}", "".join(texts))
    scores = ast.literal_eval(shown)
    assert scores["bootstrapped"] >= scores["no examples"] + 25
    assert any(re.search(r"[1-9]\d* of them kept", text) for text in texts)
    assert any(text.startswith("True Prediction(") for text in texts)


def _run(name: str) -> list[str]:
    """Run a notebook; return the text that each code cell shows."""
    (path,) = [path for path in NOTEBOOKS if path.stem == name]
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    texts = []
    for cell in notebook.cells:
        shown = ""
        for output in cell.get("outputs", ()):
            shown += output.get("text", "") or output.get("data", {}).get("text/plain", "")
        texts.append(shown)
    return texts
