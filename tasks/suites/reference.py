"""The Hugging Face and TIMM halves of the reference sweep: 46 + 61 historical names and the sizes they ran at.

These are the lists behind the PyTorch 2.0 announcement of December 2022, with the batch sizes that its harness used on an A100 with
40 GB (the listed value over the model's divisor). Standard library only, so the orchestrator can read it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HuggingFaceEntry:
    """One historical name. ``model_class`` None: the name is the class's; ``config`` None: the class's default configuration.

    ``seq_len`` is in tokens. ``decoder_input_ids``: the encoder's input is the decoder's too; otherwise a sequence-to-sequence model
    shifts its labels. Tolerances are those that the historical harness gave the model, None being the suite's own.
    """

    batch_size: int
    seq_len: int
    model_class: str | None = None
    config: str | None = None  # a key of ``tasks.suites.huggingface_configs.CONFIGS``
    decoder_input_ids: bool = False
    training_tolerance: float | None = None
    inference_tolerance: float | None = None
    cpu_inference_tolerance: float | None = None

    def default_batch_size(self, mode: str) -> int:  # noqa: ARG002 - the same for both modes, as in the historical harness
        return self.batch_size


@dataclass(frozen=True, slots=True)
class TimmEntry:
    """One historical name. ``timm_name`` None: timm still has it.

    ``scaled_loss``: the historical harness divided this model's loss by 1000, to keep its gradients small enough to compare.
    ``test_size``: the image's height and width in inference, where timm's data configuration has changed since.
    """

    batch_size: int
    timm_name: str | None = None
    scaled_loss: bool = False
    test_size: int | None = None
    training_tolerance: float | None = None
    fidelity: str | None = None

    def default_batch_size(self, mode: str) -> int:  # noqa: ARG002 - the same for both modes, as in the historical harness
        return self.batch_size


HUGGINGFACE: dict[str, HuggingFaceEntry] = {
    "AlbertForMaskedLM": HuggingFaceEntry(4, 512),
    "AlbertForQuestionAnswering": HuggingFaceEntry(4, 512, training_tolerance=2e-2),
    "AllenaiLongformerBase": HuggingFaceEntry(4, 1024, "LongformerForMaskedLM", "longformer-base-4096"),
    "BartForCausalLM": HuggingFaceEntry(4, 1024),
    "BartForConditionalGeneration": HuggingFaceEntry(2, 1024),
    "BertForMaskedLM": HuggingFaceEntry(16, 512),
    "BertForQuestionAnswering": HuggingFaceEntry(16, 512),
    "BlenderbotForCausalLM": HuggingFaceEntry(4, 128),
    "BlenderbotSmallForCausalLM": HuggingFaceEntry(64, 128),
    "BlenderbotSmallForConditionalGeneration": HuggingFaceEntry(64, 128, decoder_input_ids=True),
    "CamemBert": HuggingFaceEntry(16, 512, "CamembertForMaskedLM", "camembert-base"),
    "DebertaForMaskedLM": HuggingFaceEntry(8, 512),
    "DebertaForQuestionAnswering": HuggingFaceEntry(16, 512),
    "DebertaV2ForMaskedLM": HuggingFaceEntry(2, 512),
    "DebertaV2ForQuestionAnswering": HuggingFaceEntry(2, 512),
    "DistilBertForMaskedLM": HuggingFaceEntry(128, 128),
    "DistilBertForQuestionAnswering": HuggingFaceEntry(256, 128),
    "DistillGPT2": HuggingFaceEntry(16, 512, "GPT2LMHeadModel", "distilgpt2"),
    "ElectraForCausalLM": HuggingFaceEntry(32, 512),
    "ElectraForQuestionAnswering": HuggingFaceEntry(64, 512),
    "GPT2ForSequenceClassification": HuggingFaceEntry(4, 1024, inference_tolerance=4e-3),
    "GoogleFnet": HuggingFaceEntry(16, 512, "FNetForMaskedLM", "fnet-base"),
    "LayoutLMForMaskedLM": HuggingFaceEntry(16, 512),
    "LayoutLMForSequenceClassification": HuggingFaceEntry(16, 512, cpu_inference_tolerance=5e-3),
    "M2M100ForConditionalGeneration": HuggingFaceEntry(16, 128, decoder_input_ids=True),
    "MBartForCausalLM": HuggingFaceEntry(4, 1024),
    "MBartForConditionalGeneration": HuggingFaceEntry(2, 1024),
    "MT5ForConditionalGeneration": HuggingFaceEntry(16, 128, config="mt5-small", decoder_input_ids=True, training_tolerance=2e-2),
    "MegatronBertForCausalLM": HuggingFaceEntry(4, 512),
    "MegatronBertForQuestionAnswering": HuggingFaceEntry(8, 512),
    "MobileBertForMaskedLM": HuggingFaceEntry(128, 128),
    "MobileBertForQuestionAnswering": HuggingFaceEntry(128, 128),
    "OPTForCausalLM": HuggingFaceEntry(2, 2048),
    "PLBartForCausalLM": HuggingFaceEntry(8, 1024),
    "PLBartForConditionalGeneration": HuggingFaceEntry(4, 1024),
    "PegasusForCausalLM": HuggingFaceEntry(32, 128),
    "PegasusForConditionalGeneration": HuggingFaceEntry(32, 128, decoder_input_ids=True),
    "RobertaForCausalLM": HuggingFaceEntry(16, 512),
    "RobertaForQuestionAnswering": HuggingFaceEntry(16, 512, inference_tolerance=4e-3),
    "Speech2Text2ForCausalLM": HuggingFaceEntry(256, 128, "TrOCRForCausalLM", "speech2text2"),
    "T5ForConditionalGeneration": HuggingFaceEntry(4, 1024, decoder_input_ids=True),
    "T5Small": HuggingFaceEntry(4, 1024, "T5ForConditionalGeneration", "t5-small", decoder_input_ids=True),
    "TrOCRForCausalLM": HuggingFaceEntry(32, 256),
    "XGLMForCausalLM": HuggingFaceEntry(8, 128),
    "XLNetLMHeadModel": HuggingFaceEntry(8, 512),
    "YituTechConvBert": HuggingFaceEntry(16, 512, "ConvBertForMaskedLM", "conv-bert-base"),
}

TIMM_OPTIONS = ("image_size",)
"""What every model of timm takes."""

TIMM: dict[str, TimmEntry] = {
    "adv_inception_v3": TimmEntry(128, "inception_v3.tf_adv_in1k"),
    "beit_base_patch16_224": TimmEntry(64, training_tolerance=1.6e-1),
    "botnet26t_256": TimmEntry(128),
    "cait_m36_384": TimmEntry(1),
    "coat_lite_mini": TimmEntry(128),
    "convit_base": TimmEntry(64),
    "convmixer_768_32": TimmEntry(32),
    "convnext_base": TimmEntry(64),
    "crossvit_9_240": TimmEntry(128),
    "cspdarknet53": TimmEntry(64, training_tolerance=4e-2),
    "deit_base_distilled_patch16_224": TimmEntry(64, training_tolerance=8e-2),
    "dla102": TimmEntry(128),
    "dm_nfnet_f0": TimmEntry(128),
    "dpn107": TimmEntry(32),
    "eca_botnext26ts_256": TimmEntry(128),
    "eca_halonext26ts": TimmEntry(128),
    "ese_vovnet19b_dw": TimmEntry(128, scaled_loss=True, test_size=224),
    "fbnetc_100": TimmEntry(128, scaled_loss=True),
    "fbnetv3_b": TimmEntry(128, training_tolerance=4e-2),
    "gernet_l": TimmEntry(128),
    "ghostnet_100": TimmEntry(128),
    "gluon_inception_v3": TimmEntry(128, "inception_v3.gluon_in1k"),
    "gluon_xception65": TimmEntry(32, "xception65.tf_in1k", fidelity="timm now calls this architecture xception65"),
    "gmixer_24_224": TimmEntry(128, training_tolerance=4e-2),
    "gmlp_s16_224": TimmEntry(128),
    "hrnet_w18": TimmEntry(128, training_tolerance=4e-2),
    "inception_v3": TimmEntry(128, training_tolerance=4e-2),
    "jx_nest_base": TimmEntry(32, "nest_base_jx.goog_in1k"),
    "lcnet_050": TimmEntry(128),
    "mixer_b16_224": TimmEntry(128, training_tolerance=4e-2),
    "mixnet_l": TimmEntry(128),
    "mnasnet_100": TimmEntry(128, scaled_loss=True),
    "mobilenetv2_100": TimmEntry(128),
    "mobilenetv3_large_100": TimmEntry(128, training_tolerance=4e-2),
    "mobilevit_s": TimmEntry(64, scaled_loss=True),
    "nfnet_l0": TimmEntry(128),
    "pit_b_224": TimmEntry(64),
    "pnasnet5large": TimmEntry(16),
    "poolformer_m36": TimmEntry(64),
    "regnety_002": TimmEntry(128),
    "repvgg_a2": TimmEntry(128),
    "res2net101_26w_4s": TimmEntry(64),
    "res2net50_14w_8s": TimmEntry(128),
    "res2next50": TimmEntry(128),
    "resmlp_12_224": TimmEntry(128),
    "resnest101e": TimmEntry(64),
    "rexnet_100": TimmEntry(128),
    "sebotnet33ts_256": TimmEntry(64, scaled_loss=True, training_tolerance=8e-2),
    "selecsls42b": TimmEntry(128, training_tolerance=4e-2),
    "spnasnet_100": TimmEntry(128),
    "swin_base_patch4_window7_224": TimmEntry(64),
    "swsl_resnext101_32x16d": TimmEntry(32, "resnext101_32x16d.fb_swsl_ig1b_ft_in1k"),
    "tf_efficientnet_b0": TimmEntry(128),
    "tf_mixnet_l": TimmEntry(128),
    "tinynet_a": TimmEntry(128),
    "tnt_s_patch16_224": TimmEntry(128),
    "twins_pcpvt_base": TimmEntry(64),
    "visformer_small": TimmEntry(128),
    "vit_base_patch16_224": TimmEntry(64),
    "volo_d1_224": TimmEntry(64),
    "xcit_large_24_p8_224": TimmEntry(5),
}
