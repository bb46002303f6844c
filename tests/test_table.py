"""The table of objectives: it says of each what it must, and the committed rendering is what the code generates."""

import pathlib
import re
import subprocess
import sys

import pytest

from slpojax import needs, objectives, selectors, table
from slpojax.tex import plain

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_committed_table_is_what_the_code_generates():
    text = (ROOT / "OBJECTIVES.md").read_text()
    # Not a plain equality: pytest would spend minutes on the difference of two long texts.
    same = text == table.main(["--markdown"])
    assert same, "run `python -m slpojax.objectives --markdown > OBJECTIVES.md`"


@pytest.mark.parametrize("name", objectives.names())
def test_an_objective_says_what_it_computes_and_who_says_so(name):
    entry = table.describe(name)
    assert entry.summary and entry.equation and entry.verified and entry.needs
    assert entry.paper or name.startswith("sft.")
    text = plain(entry.equation)
    assert not set("\\\x00\x01\x02") & set(text), text


def test_a_paper_that_is_not_on_arxiv_has_its_link_as_well():
    entry = table.describe("dpo.conservative")
    assert (entry.paper, entry.link) == ("Mitchell 2023", "https://ericmitchell.ai/cdpo.pdf")
    assert "[Mitchell 2023](https://ericmitchell.ai/cdpo.pdf)" in table.main(["--markdown"])
    unlinked = {name for name in objectives.names() if not table.describe(name).link}
    assert {name for name in unlinked if not name.startswith("sft.")} == {"dpo.beta_gamma", "dpo.beta_gamma_hinge"}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_the_documents_name_objectives_that_exist(document):
    modules = "|".join({name.partition(".")[0] for name in objectives.names()})
    named = re.findall(rf"(?<![/\w])(?:{modules})\.[a-z_0-9]+\b(?!/)", (ROOT / document).read_text())
    assert {name for name in named if not name.endswith(".py")} <= set(objectives.names())


def test_the_table_has_a_line_of_each_and_fits_a_terminal():
    lines = table.main([]).splitlines()
    names = [line.split()[0] for line in lines if line and line.split()[1] not in "+*"]
    assert all(names.count(name) == 1 for name in (*objectives.names(), *selectors.names()))
    assert max(map(len, lines)) <= 120 and len(lines) < 160


def test_the_committed_table_says_what_every_need_is():
    text = table.main(["--markdown"])
    for name in needs.NEEDS:
        assert name == "policy" or f"`{name}`: {needs.describe(name)}" in text


@pytest.mark.parametrize(
    "name, needs",
    [
        ("sft.sequence_sum", ("response",)),
        ("sft.token_mean", ("response", "the batch's statistics")),
        ("slpo.shift", ("pair", "reference")),
        ("token_level.wpo", ("pair", "reference", "whole distribution (collision)")),
        ("listwise.nca", ("K candidates", "reference", "scores")),
        ("self_supervised.spo", ("K candidates", "reference", "copies with content removed")),
    ],
)
def test_what_an_objective_needs(name, needs):
    assert table.describe(name).needs == needs


def test_one_in_full():
    text = table.main(["dpo.ipo"])
    assert text.startswith("dpo.ipo(policy, ref, *, beta=0.1, length_normalize=True)")
    for part in (
        "equation  L = (h - 1 / (2 β))²",
        "needs     pair, reference",
        "defaults  beta=0.1, length_normalize=True",
        "paper     Azar 2023 https://arxiv.org/abs/2310.12036",
        "source    slpojax/objectives/dpo.py:",
        "Args:\n    policy: [K, T] log-probs",
    ):
        assert part in text, part


def test_a_selector_and_a_mixture_in_full():
    assert "weight='reward'" in table.main(["mc_kernel"])
    text = table.main(["dpo.sigmoid", "+", "0.1", "*", "dpo.hinge"])
    assert "sigmoid_beta=0.1, hinge_beta=0.1" in text and "0.1 * dpo.hinge: Hinge loss" in text


@pytest.mark.parametrize(
    "method, name",
    [
        ("REBEL", "margin.rpo_squared"),
        ("spin", "dpo.sigmoid"),
        ("Pre-DPO", "dpo.sigmoid"),
        ("delta learning", "margin.sigmoid_norm"),
        ("Cal-DPO", "dpo.sigmoid + 0.5 * anchored.sppo_hard"),
    ],
)
def test_a_method_that_is_an_objective_of_another_name(method, name):
    text = table.one(method)
    assert text.casefold().startswith(method.casefold()) and f"\n{name}" in text and "arXiv:" in text


def test_an_objective_from_outside(tmp_path, monkeypatch):
    (tmp_path / "bare_idea.py").write_text("def mine(policy, *, beta=0.1):\n    return policy.token.sum(), {}\n")
    monkeypatch.syspath_prepend(tmp_path)
    entry = table.describe("bare_idea.mine")
    assert (entry.summary, entry.equation, entry.paper, entry.verified) == ("", "", "", "")
    assert entry.needs == ("response",) and entry.defaults == {"beta": 0.1}


def test_the_program_says_what_there_is_no_entry_for():
    command = [sys.executable, "-m", "slpojax.objectives", "dpo.sigmoyd"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: unknown objective 'dpo.sigmoyd' (near: dpo.sigmoid")


@pytest.mark.parametrize(
    "tex, text",
    [
        (r"\frac{1}{4} \big[ a + b \big]", "1/4 [a + b]"),
        (r"\log \frac{P(y_w)}{P(y_l)}", "log (P(y_w)/P(y_l))"),
        (r"\frac{a - \frac{b}{2}}{1 - 2 \epsilon}", "(a - b/2) / (1 - 2 ε)"),
        (r"\bar L(y) \, \hat{r}_k^2", "L̄(y) r̂_k²"),
        (r"KL(q \| p), \quad k \in \{1, 2\}", "KL(q || p),   k ∈ {1, 2}"),
        (r"\sum_{j \ge k} e^{r_j} e^{-10}", "Σ_(j ≥ k) e^(r_j) e^(-10)"),
        (r"u^{1 - \alpha} m_{(i)} x^{(t)}_{ref}", "u^(1 - α) m_(i) x^(t)_ref"),
        (r"\text{softmax}(s / \alpha)_{max}", "softmax(s / α)_max"),
    ],
)
def test_an_equation_as_text(tex, text):
    assert plain(tex) == text
