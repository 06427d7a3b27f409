from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tasks.suites.torchbench.moco import MomentumContrast, join_process_group, shuffle, unshuffle


@pytest.fixture(autouse=True)
def alone():
    """A process group of this process alone, gone after the test."""
    join_process_group(torch.device("cpu"))
    yield
    dist.destroy_process_group()


def small(**settings):
    torch.manual_seed(0)
    return MomentumContrast(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), **({"dimensions": 5, "keys": 12} | settings))


def views(batch=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, 2, 2, generator=generator) for _ in range(2)]


def test_logits_are_similarities_over_the_temperature():
    model, (queries, keys) = small(momentum=1.0, temperature=0.5), views()
    queue = model.queue.clone()
    logits, labels = model(queries, keys)
    query, key = model.query_encoder(queries), model.key_encoder(keys)
    query, key = query / query.norm(dim=1, keepdim=True), key / key.norm(dim=1, keepdim=True)
    for row in range(4):
        assert logits[row, 0].item() == pytest.approx(2 * (query[row] * key[row]).sum().item(), abs=1e-5)
        for column in range(12):
            assert logits[row, 1 + column].item() == pytest.approx(2 * (query[row] * queue[:, column]).sum().item(), abs=1e-5)
    assert labels.tolist() == [0, 0, 0, 0]


def test_the_newest_keys_replace_the_oldest():
    model = small(momentum=1.0)
    original = model.queue.clone()
    batches = [views(seed=seed) for seed in range(4)]
    for step, (queries, keys) in enumerate(batches):
        model(queries, keys)
        assert model.pointer.item() == (4 * (step + 1)) % 12
        key = nn.functional.normalize(model.key_encoder(keys), dim=1)
        torch.testing.assert_close(model.queue[:, 4 * (step % 3) : 4 * (step % 3) + 4], key.T)
        if step == 0:
            assert torch.equal(model.queue[:, 4:], original[:, 4:])


def test_the_key_encoder_starts_equal_and_follows_slowly():
    model = small(momentum=0.9)
    pairs = list(zip(model.query_encoder.parameters(), model.key_encoder.parameters(), strict=True))
    assert all(torch.equal(query, key) for query, key in pairs)
    with torch.no_grad():
        for query, _ in pairs:
            query.add_(1.0)
    wanted = [0.9 * (query - 1.0) + 0.1 * query for query, _ in pairs]
    model(*views())
    assert all(torch.allclose(key, value) for (_, key), value in zip(pairs, wanted, strict=True))


def test_only_the_query_encoder_learns():
    model = small()
    model(*views())[0].square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.query_encoder.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.key_encoder.parameters())


def test_shuffling_is_undone():
    torch.manual_seed(0)
    images = torch.arange(8.0).view(8, 1)
    shuffled, order = shuffle(images)
    assert sorted(shuffled.flatten().tolist()) == images.flatten().tolist()
    assert not torch.equal(shuffled, images)
    assert torch.equal(unshuffle(shuffled, order), images)


def test_the_state_dict_holds_all_that_a_step_changes():
    model = DistributedDataParallel(small(), init_sync=False)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    first = model(*views())[0]
    assert not torch.equal(model.module.queue, before["module.queue"])
    model.load_state_dict(before)
    torch.manual_seed(5)
    assert torch.equal(model(*views())[0], first)


def test_a_batch_that_does_not_divide_the_queue_is_an_error():
    with pytest.raises(ValueError, match="a queue of 12 keys is no multiple of the batch of 5"):
        small()(*views(batch=5))


def test_joining_twice_keeps_the_group():
    group = dist.group.WORLD
    join_process_group(torch.device("cpu"))
    assert dist.group.WORLD is group
    assert (dist.get_world_size(), dist.get_backend()) == (1, "gloo")
