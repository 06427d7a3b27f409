"""The huggingface suite: any text model of transformers by its class name, with random weights and the model's own loss.

The 46 names of the reference sweep have their sizes in ``reference.HUGGINGFACE``; any other class with one of the heads in ``_HEADS``
gets its default configuration. Options are ``seq_len`` and any scalar attribute of the configuration (``num_hidden_layers`` and the
like). Nothing is fetched: configurations come from the library's defaults or from ``huggingface_configs``.

Inputs follow the historical harness: uniform random token ids; all zeros for Roberta, which reads positions off padding; the last token
the end of sequence for the Bart family. Labels are always given, in inference too, so every output starts with the loss. Dropout
probabilities become 1e-30: the kernels stay, the randomness goes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from tasks.dropout import NEGLIGIBLE_RATE
from tasks.suites import huggingface_audio
from tasks.suites.benchmark import Benchmark, BuildRequest, UnsupportedModelError
from tasks.suites.huggingface_configs import CONFIGS, FIDELITY
from tasks.suites.reference import HUGGINGFACE, HuggingFaceEntry

_DEFAULT_SEQ_LEN = 512
_HEADS = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForQuestionAnswering", "ForSequenceClassification")


def build(request: BuildRequest) -> Benchmark:
    """Build ``request.name``: one of the 46, or any class of transformers with a known head.

    Raises:
        UnsupportedModelError: transformers has no such class, its head is not known here, or it does not read token ids.
        ValueError: an option is unknown or does not fit, or a model outside the 46 comes without a batch size.
    """
    entry = HUGGINGFACE.get(request.name)
    model_class = _model_class(request.name, entry)
    config = _config(request, entry, model_class)
    batch_size = request.batch_size_or(entry.default_batch_size(request.mode) if entry else None)
    seq_len = request.integer_option("seq_len", entry.seq_len if entry else _default_seq_len(config))
    module = model_class(config).train(request.training)
    _share_input_embeddings(module)
    _keep_fourier_transforms_out_of_half_precision(module)
    _mask_deberta_scores_in_float32(module)
    return Benchmark(
        module=module,
        args=(),
        kwargs=_inputs(request.name, entry, model_class, config, (batch_size, seq_len)),
        loss=own_loss,
        batch_size=batch_size,
        source="library",
        fidelity=FIDELITY.get(request.name),
        **_tolerance(request, entry),
    )


def own_loss(outputs: Any) -> torch.Tensor:
    """The loss that the model computed from its labels."""
    loss: torch.Tensor = outputs["loss"]
    return loss


def _model_class(name: str, entry: HuggingFaceEntry | None) -> Any:
    import transformers

    class_name = (entry.model_class if entry else None) or name
    model_class = getattr(transformers, class_name, None)
    if model_class is None or not hasattr(model_class, "config_class"):
        raise UnsupportedModelError(f"transformers {transformers.__version__} has no model class {class_name}")
    if not class_name.endswith(_HEADS):
        raise UnsupportedModelError(f"{class_name}: no inputs and labels are known for this head; known heads: {', '.join(_HEADS)}")
    if model_class.main_input_name != "input_ids" and not huggingface_audio.reads_features(model_class):
        message = f"{class_name} reads {model_class.main_input_name}; this suite makes token ids, and Whisper's features of sound"
        raise UnsupportedModelError(message)
    return model_class


def configure(request: BuildRequest, config_class: Any, written: dict[str, Any]) -> Any:
    """``config_class(**written)`` with the request's options over it: ``seq_len`` is left to the caller, any other has to be an attribute.

    Caching of keys and values is off: no step here generates text.
    """
    request.check_options({"seq_len", *_scalar_attributes(config_class(**written))})
    values = written | {name: value for name, value in request.options.items() if name != "seq_len"}
    config = config_class(**values)
    for name, value in values.items():
        if getattr(config, name) != value:  # some configurations overrule what they are given
            setattr(config, name, value)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config


def _config(request: BuildRequest, entry: HuggingFaceEntry | None, model_class: Any) -> Any:
    config = configure(request, model_class.config_class, CONFIGS[entry.config] if entry and entry.config else {})
    _set_padding(request.name, config)
    _make_dropout_negligible(config)
    return config


def _scalar_attributes(config: Any) -> list[str]:
    """What an option may set: the attributes that are no structures, under both of their names where they have two."""
    own = [name for name, value in config.to_dict().items() if not isinstance(value, (dict, list)) and not name.startswith("_")]
    return [*own, *config.attribute_map]


def _set_padding(name: str, config: Any) -> None:
    unset = name.endswith("ForSequenceClassification") and getattr(config, "pad_token_id", None) is None
    if unset or name.startswith(("Roberta", "Marian")):
        config.pad_token_id = 0


def _make_dropout_negligible(config: Any) -> None:
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, NEGLIGIBLE_RATE)


def _default_seq_len(config: Any) -> int:
    positions = getattr(config, "max_position_embeddings", None)
    return min(_DEFAULT_SEQ_LEN, positions) if isinstance(positions, int) and positions > 0 else _DEFAULT_SEQ_LEN


def _inputs(name: str, entry: HuggingFaceEntry | None, model_class: Any, config: Any, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Token ids int64 [batch, seq_len], or features of sound, and the labels of the model's head."""
    if huggingface_audio.reads_features(model_class):
        return huggingface_audio.features(config, shape[0]) | _labels(name, model_class.__name__, config, shape)
    input_ids = torch.randint(0, 1 if name.startswith("Roberta") else config.vocab_size, shape)
    if "Bart" in name:
        input_ids[:, -1] = config.eos_token_id
    inputs = {"input_ids": input_ids}
    if entry and entry.decoder_input_ids:
        inputs["decoder_input_ids"] = input_ids
    return inputs | _labels(name, model_class.__name__, config, shape)


def _labels(name: str, class_name: str, config: Any, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    batch_size, seq_len = shape
    if class_name.endswith("ForQuestionAnswering"):
        return {key: torch.randint(0, seq_len, (batch_size,)) for key in ("start_positions", "end_positions")}
    if class_name.endswith("ForSequenceClassification"):
        return {"labels": torch.randint(0, max(config.num_labels - 1, 1), (batch_size,))}
    # By the historical name, as the harness did: T5Small draws from the whole vocabulary, T5ForConditionalGeneration does not.
    upper = config.vocab_size - 1 if name.endswith("ForConditionalGeneration") else config.vocab_size
    return {"labels": torch.randint(0, upper, shape)}


def _tolerance(request: BuildRequest, entry: HuggingFaceEntry | None) -> dict[str, Any]:
    if entry is None:
        return {}
    tolerance = entry.training_tolerance if request.training else entry.inference_tolerance
    if not request.training and request.device.type == "cpu" and entry.cpu_inference_tolerance is not None:
        tolerance = entry.cpu_inference_tolerance
    if tolerance is None:
        return {}
    return {"tolerance": tolerance, "tolerance_reason": f"pytorch/benchmarks/dynamo allows this model {tolerance:g} in {request.mode}"}


def _share_input_embeddings(module: Any) -> None:
    """One table of embeddings for encoder and decoder, whatever the output layer does, as the papers have it.

    Since transformers 5 a model whose output layer is not tied to that table gets a table for each side as well.
    """
    if module.config.is_encoder_decoder and not module.config.tie_word_embeddings:
        module.set_input_embeddings(module.get_input_embeddings())


def _keep_fourier_transforms_out_of_half_precision(module: nn.Module) -> None:
    """FNet feeds the half-precision output of a linear layer to an FFT that has no such kernel; autocast does not know the operator."""
    for part in module.modules():
        transform = getattr(part, "fourier_transform", None)
        if callable(transform):
            part.fourier_transform = partial(_transform_in_float32, transform)  # type: ignore[assignment]


def _transform_in_float32(transform: Any, hidden: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = transform(_at_least_float32(hidden))
    return result


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _mask_deberta_scores_in_float32(module: nn.Module) -> None:
    """DeBERTa masks its scores with the smallest number of its queries' dtype: float32's under autocast, where the scores are float16.

    The softmax that follows is a float32 operator under autocast: with the conversion before the mask the results are the same. Its place
    is the mixing of heads that published configurations leave out.
    """
    for part in module.modules():
        if type(part).__name__ == "DisentangledSelfAttention" and getattr(part, "head_logits_proj", part) is None:
            part.head_logits_proj = _AtLeastFloat32()


class _AtLeastFloat32(nn.Module):
    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return _at_least_float32(scores)
