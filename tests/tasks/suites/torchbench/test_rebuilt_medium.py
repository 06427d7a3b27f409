"""What holds for every medium-sized rebuilt model: parameters, shapes, finite steps of a small variant, what a request may ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from tasks.suites.benchmark import mean_of_outputs
from tasks.suites.torchbench import MODELS, audio, bert, fastnlp_bert, matting, moco, slomo, speech_transformer, tacotron, transformer, yolo
from tests.tasks.suites.torchbench.builds import build, shapes_of

IMAGE = (3, 352, 352)
ALWAYS_TRAINING = {"demucs", "tacotron2", "yolov3"}


@dataclass(frozen=True)
class Expected:
    parameters: int
    inputs: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]] | None  # None: the forward pass reads data, so there is nothing to see without arithmetic
    unused: int = 0  # parameters (tensors) without a gradient
    tolerance: float | None = None  # in training


EXPECTED = {
    "attention_is_all_you_need_pytorch": Expected(58_727_936, [(256, 33), (256, 31)], [(256 * 31, 9521)]),
    "Background_Matting": Expected(
        17_908_420,
        [(3, 3, 512, 512), (3, 3, 512, 512), (3, 1, 512, 512), (3, 4, 512, 512)],
        [(3, 1, 512, 512), (3, 3, 512, 512)],
        unused=12,
    ),
    "BERT_pytorch": Expected(115_805_991, [(16, 128), (16, 128)], [(16, 128, 768)], unused=4),
    "demucs": Expected(265_679_496, [(4, 5, 2, 426888)], [(4, 4, 2, 382788), (4, 4, 2, 371372)]),
    "fastNLP_Bert": Expected(102_269_186, [(6, 474)], None),
    "moco": Expected(47_540_608, [(32, 3, 224, 224), (32, 3, 224, 224)], None),
    "speech_transformer": Expected(44_823_040, [(10, 204, 320), (10,), (10, 21)], None),
    "Super_SloMo": Expected(39_610_473 + 7_635_264, [(6,), (6, *IMAGE), (6, *IMAGE), (6, *IMAGE)], [(6, *IMAGE), ()], unused=20),
    "tacotron2": Expected(28_193_153, [(64, 160), (64,), (64, 80, 64), (64,)], None, tolerance=8e-2),
    "yolov3": Expected(62_998_749, [(16, 3, 384, 512)], [(16, 3, 12, 16, 85), (16, 3, 24, 32, 85), (16, 3, 48, 64, 85)], tolerance=8e-2),
}


def small_moco():
    return moco.MomentumContrast(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8)), dimensions=8, keys=12)


def small_bert_shape():
    return fastnlp_bert.BertShape(pieces=1000, width=16, layers=2, heads=2, inner=32)


SMALL: dict[str, Callable[[], tuple[torch.nn.Module, tuple[Any, ...], list[tuple[int, ...]]]]] = {
    "attention_is_all_you_need_pytorch": lambda: (
        transformer.Transformer(50, 16, 2, 2, 32),
        (transformer.sentences(33, 2, 50), transformer.sentences(31, 2, 50)),
        [(2 * 31, 50)],
    ),
    "Background_Matting": lambda: (
        matting.MattingGenerator(4, 2, 1),
        tuple(torch.rand(2, channels, 16, 16) for channels in (3, 3, 1, 4)),
        [(2, 1, 16, 16), (2, 3, 16, 16)],
    ),
    "BERT_pytorch": lambda: (bert.Bert(50, 16, 2, 2, 32), bert.sentence_pairs(2, 50, 0), [(2, 128, 16)]),
    "demucs": lambda: (audio.Separation(audio.Demucs(4, 3), 100, 2), (torch.rand(2, 5, 2, 1000),), [(2, 4, 2, 900), (2, 4, 2, 684)]),
    "fastNLP_Bert": lambda: (
        fastnlp_bert.QuestionAnswering(
            fastnlp_bert.WordEmbedding(small_bert_shape(), fastnlp_bert.one_piece_words(90, 1000, 0)), small_bert_shape().width
        ),
        (fastnlp_bert.questions(2, 90, 0),),
        [(2, 474), (2, 474)],
    ),
    "moco": lambda: (small_moco(), (torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)), [(4, 13), (4,)]),
    "speech_transformer": lambda: (
        speech_transformer.SpeechTransformer(50, width=16, layers=1, heads=2, inner=32),
        speech_transformer.utterances(50),
        [(10, 22, 50), (10, 22)],
    ),
    "Super_SloMo": lambda: (
        slomo.SuperSloMo(32, 64, 2, vgg_scale=16),
        (torch.tensor([0, 6]), *(torch.randn(2, 3, 32, 64) for _ in range(3))),
        [(2, 3, 32, 64), ()],
    ),
    "tacotron2": lambda: (tacotron.Tacotron2(16, 16, 8, 8), tacotron.speech(2, 6), [(2, 80, 6), (2, 80, 6), (2, 6), (2, 6, 160)]),
    "yolov3": lambda: (yolo.YoloV3(2), (torch.rand(2, 3, 32, 64),), [(2, 3, 1, 2, 85), (2, 3, 2, 4, 85), (2, 3, 4, 8, 85)]),
}


@pytest.fixture(autouse=True)
def alone():
    """A process group of this process alone, gone after the test."""
    moco.join_process_group(torch.device("cpu"))
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters_shapes_modes_and_gradients_at_the_historical_batch(name):
    expected = EXPECTED[name]
    with FakeTensorMode():
        training, inference = build(name), build(name, "inference")
        if expected.outputs is not None:
            outputs = training.module(*training.args)
            training.loss(outputs).backward()
            assert shapes_of(outputs) == expected.outputs
            assert sum(parameter.grad is None for parameter in training.module.parameters()) == expected.unused
    assert sum(parameter.numel() for parameter in training.module.parameters()) == expected.parameters
    assert shapes_of(training.args) == expected.inputs
    assert training.module.training
    assert inference.module.training == (name in ALWAYS_TRAINING)
    assert (training.batch_size, inference.batch_size) == (MODELS[name].batch_size, MODELS[name].eval_batch_size)
    assert (training.source, training.kwargs) == ("rebuilt", {})
    assert (training.tolerance, inference.tolerance) == (expected.tolerance, None)
    assert training.fidelity is None or "\n" not in training.fidelity


@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", SMALL)
def test_a_training_step_is_finite(name, amp):
    torch.manual_seed(0)
    module, args, shapes = SMALL[name]()
    with torch.autocast("cpu", dtype=amp or torch.bfloat16, enabled=amp is not None):
        outputs = module.train()(*args)
        loss = mean_of_outputs(outputs)
    loss.backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    assert shapes_of(outputs) == shapes
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", EXPECTED)
def test_unknown_options_are_refused(name):
    with FakeTensorMode(), pytest.raises(ValueError, match="unknown option 'depth'"):
        build(name, depth=3)


@pytest.mark.parametrize(("name", "batch_size"), [("speech_transformer", 32), ("Background_Matting", 4), ("demucs", 6), ("moco", 7)])
def test_a_batch_that_the_model_cannot_have_is_refused(name, batch_size):
    with pytest.raises(ValueError, match=f"{name}: .*batch"):
        build(name, batch_size=batch_size)


def test_a_batch_that_the_model_can_have_is_kept():
    with FakeTensorMode():
        assert build("speech_transformer", batch_size=10).batch_size == 10
        assert build("demucs", batch_size=2).args[0].shape == (2, 5, 2, 426888)
        assert build("yolov3", batch_size=3).args[0].shape == (3, 3, 384, 512)


def test_the_length_of_tacotrons_loop_is_an_option():
    with FakeTensorMode():
        short, full = build("tacotron2", batch_size=2), build("tacotron2", batch_size=2, mel_frames=832)
    assert (short.args[2].shape[2], full.args[2].shape[2]) == (64, 832)
    assert "64 mel frames" in (short.fidelity or "")
    with pytest.raises(ValueError, match="mel_frames must be a positive integer"):
        build("tacotron2", mel_frames=0)
