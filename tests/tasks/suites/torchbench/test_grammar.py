from __future__ import annotations

import pytest
import torch

from tasks.suites.benchmark import BuildRequest
from tasks.suites.torchbench.grammar import NeuralCfg, build_pytorch_struct, residual_mlp

CPU = torch.device("cpu")


@pytest.fixture
def grammar():
    torch.manual_seed(0)
    return NeuralCfg(vocabulary=11, preterminals=4, nonterminals=3, width=8)


def test_probabilities_sum_to_one(grammar):
    terms, rules, roots = grammar(torch.arange(11).unsqueeze(0))  # a sentence that holds each word once
    torch.testing.assert_close(terms.exp().sum(1), torch.ones(1, 4))
    torch.testing.assert_close(rules.exp().sum((2, 3)), torch.ones(1, 3))
    torch.testing.assert_close(roots.exp().sum(1), torch.ones(1))


def test_scores_are_their_formulas(grammar):
    words = torch.tensor([[2, 7], [0, 2]])
    terms, rules, roots = grammar(words)
    term_scores = grammar.term_mlp(grammar.term_emb) @ grammar.word_emb.T
    for sentence, position, symbol in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(4)).tolist():
        expected = term_scores[symbol, words[sentence, position]] - term_scores[symbol].exp().sum().log()
        torch.testing.assert_close(terms[sentence, position, symbol], expected)
    rule_scores = (grammar.nonterm_emb[:, None, None, :] * grammar.nonterm_emb_c[None]).sum(-1)
    torch.testing.assert_close(rules[1], rule_scores - rule_scores.exp().sum((1, 2), keepdim=True).log())
    root_scores = grammar.root_emb @ grammar.root_mlp(grammar.s_emb)[0]
    torch.testing.assert_close(roots[0], root_scores - root_scores.exp().sum().log())


def test_the_residual_mlp_is_its_formula():
    torch.manual_seed(0)
    module, inputs = residual_mlp(6), torch.randn(3, 6)
    hidden = inputs @ module[0].weight.T + module[0].bias
    for block in module[1:]:
        inner = (hidden @ block.inner.weight.T + block.inner.bias).relu()
        hidden = (inner @ block.outer.weight.T + block.outer.bias).relu() + hidden
    torch.testing.assert_close(module(inputs), hidden)


def test_words_are_transposed_and_scaled_with_the_batch():
    (words,) = build_pytorch_struct(BuildRequest("pytorch_struct", "training", CPU)).args
    assert (words.shape, words.stride()) == ((40, 29), (1, 40))
    assert words.min() >= 0
    assert words.max() < 4771
    small = build_pytorch_struct(BuildRequest("pytorch_struct", "training", CPU, batch_size=10, options={"seq_len": 7}))
    assert small.args[0].shape == (2, 7)
    with pytest.raises(ValueError, match="must be a multiple of 5"):
        build_pytorch_struct(BuildRequest("pytorch_struct", "training", CPU, batch_size=12))
