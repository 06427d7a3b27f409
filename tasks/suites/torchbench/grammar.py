"""Grammar induction: the rule probabilities of the neural context-free grammar of Kim, Dyer and Rush, arXiv 1906.10225, section 2.2.

The sweep steps the network that computes the log-probabilities of all rules. Parsing with them is no part of it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tasks.suites.benchmark import Benchmark, BuildRequest
from tasks.suites.torchbench.rebuilt import assemble, batch_size_of

_VOCABULARY = 4771
_WORDS = 29
_SENTENCES_PER_DEFAULT_BATCH = (40, 200)  # what the historical data set yields for its batch size of 200


class ResidualBlock(nn.Module):
    """[..., H] -> [..., H]: two layers with ReLU around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.outer(functional.relu(self.inner(hidden)))) + hidden


def residual_mlp(width: int) -> nn.Sequential:
    """A linear layer and two residual blocks."""
    return nn.Sequential(nn.Linear(width, width), ResidualBlock(width), ResidualBlock(width))


class NeuralCfg(nn.Module):
    """Words int64 [B, N] -> log-probabilities of the rules of a grammar with ``T`` preterminals and ``NT`` nonterminals.

    * ``terms`` [B, N, T]: preterminal to the word at that position, normalised over the vocabulary.
    * ``rules`` [B, NT, NT + T, NT + T]: nonterminal to a pair of symbols, normalised over pairs.
    * ``roots`` [B, NT]: start symbol to nonterminal.

    Only ``terms`` depends on the words; the others are repeated for each sentence.
    """

    def __init__(self, vocabulary: int = _VOCABULARY, preterminals: int = 30, nonterminals: int = 30, width: int = 256) -> None:
        super().__init__()
        symbols = preterminals + nonterminals
        self.word_emb = nn.Parameter(torch.empty(vocabulary, width))
        self.term_emb = nn.Parameter(torch.empty(preterminals, width))
        self.nonterm_emb = nn.Parameter(torch.empty(nonterminals, width))
        self.nonterm_emb_c = nn.Parameter(torch.empty(symbols, symbols, width))
        self.root_emb = nn.Parameter(torch.empty(nonterminals, width))
        self.s_emb = nn.Parameter(torch.empty(1, width))
        self.term_mlp = residual_mlp(width)
        self.root_mlp = residual_mlp(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._terms(words), self._rules(words.size(0)), self._roots(words.size(0))

    def _terms(self, words: torch.Tensor) -> torch.Tensor:
        batch, length = words.shape
        scores = torch.einsum("vh,th->tv", self.word_emb, self.term_mlp(self.term_emb)).log_softmax(-1)
        preterminals, vocabulary = scores.shape
        # Expanded to one table per position before the lookup, as the original does: a gather on strides of zero.
        table = scores.expand(batch, length, preterminals, vocabulary)
        positions = words.unsqueeze(2).expand(batch, length, preterminals).unsqueeze(3)
        return torch.gather(table, 3, positions).squeeze(3)

    def _rules(self, batch: int) -> torch.Tensor:
        scores = torch.einsum("sh,tuh->stu", self.nonterm_emb, self.nonterm_emb_c)
        return scores.flatten(1).log_softmax(-1).view_as(scores).expand(batch, *scores.shape)

    def _roots(self, batch: int) -> torch.Tensor:
        scores = torch.einsum("ah,th->at", self.root_mlp(self.s_emb), self.root_emb).log_softmax(-1)
        return scores.expand(batch, scores.size(1))


def build_pytorch_struct(request: BuildRequest) -> Benchmark:
    """Random sentences, transposed as the historical loader leaves them.

    The batch size is the loader's, of which 200 gives 40 sentences of 29 words; another one is scaled in the same ratio. Option
    ``seq_len`` is the number of words of a sentence. Raises ``ValueError`` for a batch size that is not a multiple of 5.
    """
    request.check_options(("seq_len",))
    batch_size = batch_size_of(request)
    per_batch, default_batch = _SENTENCES_PER_DEFAULT_BATCH
    sentences, remainder = divmod(batch_size * per_batch, default_batch)
    if remainder:
        raise ValueError(f"{request.name}: batch_size must be a multiple of {default_batch // per_batch}, not {batch_size}")
    words = request.integer_option("seq_len", _WORDS)
    tokens = torch.randint(0, _VOCABULARY, (words, sentences)).t()
    fidelity = f"random words; a batch of {batch_size} is {sentences} sentences of {words} words; train mode in inference too"
    return assemble(request, NeuralCfg(), (tokens,), batch_size, fidelity=fidelity, always_train=True)
