from __future__ import annotations

import math

import pytest
import torch

from tasks.suites.benchmark import BuildRequest
from tasks.suites.torchbench.recommendation import DeepAutoencoder, build_dlrm

CPU = torch.device("cpu")


def selu(values):
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * torch.where(values > 0, values, alpha * (values.exp() - 1))


def test_the_autoencoder_is_its_formula():
    torch.manual_seed(0)
    module = DeepAutoencoder(items=37).eval()
    ratings = torch.randn(4, 37)
    hidden = ratings
    for layer in (*module.encoder, *module.decoder):
        hidden = selu(hidden @ layer.weight.T + layer.bias)
    torch.testing.assert_close(module(ratings), hidden)
    assert [layer.out_features for layer in (*module.encoder, *module.decoder)] == [512, 512, 1024, 512, 512, 37]


def test_the_code_is_dropped_to_a_fifth_in_training():
    torch.manual_seed(0)
    module = DeepAutoencoder(items=37).train()
    seen = []
    module.dropout.register_forward_hook(lambda layer, args, output: seen.append(output))
    module(torch.randn(64, 37))
    assert seen[0].shape == (64, 1024)
    assert (seen[0] != 0).float().mean().item() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("amp", [False, True])
def test_the_autoencoders_gradients_are_finite(amp):
    torch.manual_seed(0)
    module = DeepAutoencoder(items=37)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        outputs = module(torch.randn(8, 37))
    outputs.float().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.fixture
def dlrm():
    torch.manual_seed(0)
    return build_dlrm(BuildRequest("dlrm", "training", CPU, batch_size=3, options={"table_rows": 200}))


def test_dlrms_bags_are_sorted_sets(dlrm):
    _, offsets, indices = dlrm.args
    assert offsets.shape == (8, 3)
    for starts, rows in zip(offsets.tolist(), indices, strict=True):
        bags = [rows[start:end].tolist() for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)]
        assert all(bag == sorted(set(bag)) for bag in bags)
        assert all(60 <= len(bag) <= 95 for bag in bags), "100 draws of 200 rows leave about 79 distinct ones"
        assert rows.min() >= 0
        assert rows.max() < 200


def test_dlrm_is_its_formula(dlrm):
    module, (dense, offsets, indices) = dlrm.module, dlrm.args
    bottom = dense
    for layer in module.bottom[::2]:
        bottom = (bottom @ layer.weight.T + layer.bias).relu()
    scores = []
    for sample in range(3):
        vectors = [bottom[sample]]
        for table, starts, rows in zip(module.tables, offsets.tolist(), indices, strict=True):
            end = starts[sample + 1] if sample < 2 else len(rows)
            vectors.append(table.weight[rows[starts[sample] : end]].sum(0))
        products = [torch.dot(vectors[i], vectors[j]) for i in range(9) for j in range(i)]
        hidden = torch.cat([bottom[sample], torch.stack(products)])
        for layer in module.top[::2]:
            hidden = (layer.weight @ hidden + layer.bias).relu()
        scores.append(hidden)
    torch.testing.assert_close(module(dense, offsets, indices), torch.stack(scores))


def test_dlrms_table_gradients_are_sparse(dlrm):
    dlrm.loss(dlrm.module(*dlrm.args)).backward()
    assert all(table.weight.grad.is_sparse for table in dlrm.module.tables)
    assert dlrm.fidelity == "tables of 200 rows"


def test_dlrms_tables_are_drawn_within_their_bound(dlrm):
    largest = max(table.weight.abs().max().item() for table in dlrm.module.tables)
    assert largest == pytest.approx(1 / math.sqrt(200), rel=1e-3)
    assert largest <= 1 / math.sqrt(200)
