from __future__ import annotations

import pytest
import torch

from tasks.suites import torchvision_compat
from tasks.suites.torchbench.fastnlp_bert import (
    BertEncoder,
    BertShape,
    QuestionAnswering,
    WordEmbedding,
    one_piece_words,
    questions,
    token_types,
)

SHAPE = BertShape(pieces=300, width=16, layers=2, heads=4, inner=32, positions=40)
# Padding, unknown, separator, then words of one to three pieces.
TABLE = [[0], [100], [102], [7], [8, 9], [10, 11, 12]]
ENCODER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}


def renamed(name: str) -> str:
    """Our name of a parameter -> transformers'."""
    head, _, rest = name.partition(".")
    if head == "layers":
        layer, part, kind = rest.split(".")
        return f"encoder.layer.{layer}.{ENCODER_NAMES[part]}.{kind}"
    return {"norm": f"embeddings.LayerNorm.{rest}", "pooler": f"pooler.dense.{rest}"}.get(head, f"embeddings.{name}")


def test_the_encoder_is_transformers_bert():
    torchvision_compat.prepare()
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    encoder = BertEncoder(SHAPE).eval()
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, max_position_embeddings=40
    )
    reference = BertModel(config).eval()
    missing = reference.load_state_dict({renamed(name): value for name, value in encoder.state_dict().items()}, strict=False)
    assert missing.unexpected_keys == []
    assert all("position_ids" in key or "token_type_ids" in key for key in missing.missing_keys)
    pieces, types = torch.randint(1, 300, (3, 12)), torch.randint(2, (3, 12))
    mask = (torch.arange(12) < torch.tensor([12, 7, 3])[:, None]).long()
    hidden, pooled = encoder(pieces, types, mask)
    wanted = reference(input_ids=pieces, token_type_ids=types, attention_mask=mask)
    torch.testing.assert_close(hidden[mask.bool()], wanted.last_hidden_state[mask.bool()], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled, wanted.pooler_output, atol=1e-5, rtol=1e-4)


def test_words_are_spliced_into_framed_pieces():
    embedding = WordEmbedding(SHAPE, TABLE)
    words = torch.tensor([[4, 2, 5, 3], [3, 3, 0, 0]])
    present = words.ne(0)
    counts = embedding.piece_counts[words] * present
    pieces, mask = embedding._pieces(words, present.sum(-1), counts.sum(-1))
    assert pieces.tolist() == [[101, 8, 9, 102, 10, 11, 12, 7, 102], [101, 7, 7, 102, 0, 0, 0, 0, 0]]
    assert mask.tolist() == [[1] * 9, [1] * 4 + [0] * 5]


def test_token_types_change_after_the_questions_separator():
    pieces = torch.tensor([[101, 8, 9, 102, 10, 11, 102], [101, 7, 7, 7, 102, 0, 0]])
    assert token_types(pieces).tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]]


def test_a_word_is_its_first_piece_and_padding_is_zero():
    torch.manual_seed(0)
    embedding = WordEmbedding(SHAPE, TABLE).eval()
    words = torch.tensor([[4, 2, 5, 3], [3, 3, 0, 0]])
    pieces = torch.tensor([[101, 8, 9, 102, 10, 11, 12, 7, 102], [101, 7, 7, 102, 0, 0, 0, 0, 0]])
    hidden, _ = embedding.encoder(pieces, token_types(pieces), pieces.ne(0).long())
    wanted = torch.stack([hidden[0, [1, 3, 4, 7]], torch.cat([hidden[1, [1, 2]], torch.zeros(2, 16)])])
    torch.testing.assert_close(embedding(words), wanted)
    wider = torch.nn.functional.pad(words, (0, 2))
    torch.testing.assert_close(embedding(wider), torch.nn.functional.pad(wanted, (0, 0, 0, 2)))


def test_word_dropout_spares_padding_and_separators_and_rests_in_eval_mode():
    torch.manual_seed(0)
    embedding = WordEmbedding(SHAPE, TABLE, word_dropout=1.0)
    words = torch.tensor([[4, 2, 5, 0]])
    assert embedding._drop_words(words).tolist() == [[1, 2, 1, 0]]
    rare = WordEmbedding(SHAPE, TABLE, word_dropout=0.01)._drop_words(torch.full((100, 100), 3))
    assert 50 < (rare == 1).sum() < 150
    embedding.eval()
    assert not torch.equal(embedding(words)[0, 0], embedding(torch.tensor([[1, 2, 1, 0]]))[0, 0])


def test_more_pieces_than_positions_are_an_error():
    with pytest.raises(ValueError, match="41 word pieces in a row, but the encoder has 40 positions"):
        WordEmbedding(SHAPE, TABLE).eval()(torch.full((1, 13), 5))


def test_questions_have_one_separator_and_their_words_one_piece():
    table = one_piece_words(2869, 21128, seed=5)
    words = questions(4, len(table), seed=5)
    assert words.shape == (4, 474)
    assert ((words == 2).sum(dim=1) == 1).all()
    assert not (words == 0).any()
    assert {len(pieces) for pieces in table} == {1}
    assert len({piece for (piece,) in table}) == 2869


def test_start_and_end_are_scored_apart():
    torch.manual_seed(0)
    module = QuestionAnswering(WordEmbedding(SHAPE, TABLE), 16).eval()
    words = torch.tensor([[4, 2, 5, 3]])
    hidden = module.embedding(words)
    scores = module(words)
    torch.testing.assert_close(scores["pred_start"], hidden @ module.output.weight[0] + module.output.bias[0])
    torch.testing.assert_close(scores["pred_end"], hidden @ module.output.weight[1] + module.output.bias[1])
