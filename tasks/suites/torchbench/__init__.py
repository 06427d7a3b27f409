"""The torchbench suite: one file per architecture family; this table says which function builds which historical name.

Standard library only, so the orchestrator can read it. Builders are named relative to this package. Batch sizes are TorchBench's own
of 2022-12 for training and inference, as its dynamo harness used them.
"""

from __future__ import annotations

from tasks.suites.entry import Entry

MODELS: dict[str, Entry] = {
    "alexnet": Entry("torchvision_models:build_classifier", 128, 128),
    "attention_is_all_you_need_pytorch": Entry("transformer:build_attention_is_all_you_need_pytorch", 256, 32),
    "Background_Matting": Entry("matting:build_background_matting", 3, 3),
    "BERT_pytorch": Entry("bert:build_bert_pytorch", 16, 16),
    "dcgan": Entry("gan:build_dcgan", 32, 256),
    "demucs": Entry("audio:build_demucs", 4, 8),
    "densenet121": Entry("torchvision_models:build_classifier", 4, 64),
    "drq": Entry("reinforcement:build_drq", 1, 1),
    "fastNLP_Bert": Entry("fastnlp_bert:build_fastnlp_bert", 6, 1),
    "functorch_dp_cifar10": Entry("torchvision_models:build_functorch_dp_cifar10", 64, 64),
    "functorch_maml_omniglot": Entry("meta_learning:build_functorch_maml_omniglot", 1, 1),
    "hf_Albert": Entry("transformers_models:build_language_model", 8, 1),
    "hf_Bart": Entry("transformers_models:build_language_model", 4, 1),
    "hf_Bert": Entry("transformers_models:build_language_model", 4, 1),
    "hf_BigBird": Entry("transformers_models:build_language_model", 2, 1),
    "hf_DistilBert": Entry("transformers_models:build_language_model", 8, 1),
    "hf_GPT2": Entry("transformers_models:build_language_model", 4, 1),
    "hf_GPT2_large": Entry("transformers_models:build_language_model", 4, 1),
    "hf_Longformer": Entry("transformers_models:build_language_model", 2, 1),
    "hf_Reformer": Entry("transformers_models:build_language_model", 4, 1),
    "hf_T5": Entry("transformers_models:build_language_model", 8, 1),
    "hf_T5_large": Entry("transformers_models:build_language_model", 2, 1),
    "LearningToPaint": Entry("reinforcement:build_learningtopaint", 96, 96),
    "lennard_jones": Entry("scientific:build_lennard_jones", 1000, 1000),
    "maml_omniglot": Entry("meta_learning:build_maml_omniglot", 5, 5),
    "mnasnet1_0": Entry("torchvision_models:build_classifier", 32, 32),
    "mobilenet_v2": Entry("torchvision_models:build_classifier", 96, 16),
    "mobilenet_v3_large": Entry("torchvision_models:build_classifier", 32, 32),
    "moco": Entry("moco:build_moco", 32, 32),
    "nvidia_deeprecommender": Entry("recommendation:build_nvidia_deeprecommender", 256, 256),
    "pytorch_CycleGAN_and_pix2pix": Entry("gan:build_pytorch_cyclegan_and_pix2pix", 1, 1),
    "pytorch_stargan": Entry("gan:build_pytorch_stargan", 16, 16),
    "pytorch_struct": Entry("grammar:build_pytorch_struct", 200, 200),
    "pytorch_unet": Entry("unet:build_pytorch_unet", 1, 1),
    "resnet152": Entry("torchvision_models:build_classifier", 32, 32),
    "resnet18": Entry("torchvision_models:build_classifier", 16, 8),
    "resnet50": Entry("torchvision_models:build_classifier", 32, 32),
    "resnext50_32x4d": Entry("torchvision_models:build_classifier", 8, 8),
    "shufflenet_v2_x1_0": Entry("torchvision_models:build_classifier", 128, 64),
    "soft_actor_critic": Entry("reinforcement:build_soft_actor_critic", 256, 256),
    "speech_transformer": Entry("speech_transformer:build_speech_transformer", 10, 10),
    "squeezenet1_1": Entry("torchvision_models:build_classifier", 32, 16),
    "Super_SloMo": Entry("slomo:build_super_slomo", 6, 6),
    "tacotron2": Entry("tacotron:build_tacotron2", 64, 64),
    "timm_efficientdet": Entry("timm_models:build_timm_efficientdet", 1, 32),
    "timm_efficientnet": Entry("timm_models:build_classifier", 32, 64),
    "timm_nfnet": Entry("timm_models:build_classifier", 128, 128),
    "timm_regnet": Entry("timm_models:build_classifier", 32, 32),
    "timm_resnest": Entry("timm_models:build_classifier", 32, 32),
    "timm_vision_transformer": Entry("timm_models:build_classifier", 8, 8),
    "timm_vision_transformer_large": Entry("timm_models:build_classifier", 8, 8),
    "timm_vovnet": Entry("timm_models:build_classifier", 32, 32),
    "tts_angular": Entry("speaker:build_tts_angular", 64, 64),
    "vgg16": Entry("torchvision_models:build_classifier", 64, 4),
    "vision_maskrcnn": Entry("torchvision_models:build_vision_maskrcnn", 4, 4),
    "yolov3": Entry("yolo:build_yolov3", 16, 8),
}

# Models beside the historical 56: TorchBench names that came later, or that never had a training result.
EXTRA: dict[str, Entry] = {
    "dlrm": Entry("recommendation:build_dlrm", 1024, 2048),
    "hf_Bert_large": Entry("transformers_models:build_language_model", 4, 1),
    "hf_T5_base": Entry("transformers_models:build_language_model", 8, 1),
    "mobilenet_v2_quantized_qat": Entry("torchvision_models:build_quantized_classifier", 96, 96),
    "phlippe_densenet": Entry("cifar:build_phlippe_densenet", 128, 128),
    "phlippe_resnet": Entry("cifar:build_phlippe_resnet", 128, 128),
    "pyhpc_equation_of_state": Entry("scientific:build_pyhpc_equation_of_state", 1_048_576, 1_048_576),
    "pyhpc_isoneutral_mixing": Entry("scientific:build_pyhpc_isoneutral_mixing", 1_048_576, 1_048_576),
    "pyhpc_turbulent_kinetic_energy": Entry("scientific:build_pyhpc_turbulent_kinetic_energy", 1_048_576, 1_048_576),
    "resnet50_quantized_qat": Entry("torchvision_models:build_quantized_classifier", 32, 32),
}

OPTIONS: dict[str, tuple[str, ...]] = {
    "grammar:build_pytorch_struct": ("seq_len",),
    "recommendation:build_dlrm": ("table_rows",),
    "speaker:build_tts_angular": ("frames",),
    "tacotron:build_tacotron2": ("mel_frames",),
    "torchvision_models:build_classifier": ("image_size",),
    "torchvision_models:build_vision_maskrcnn": ("min_size", "max_size", "rpn_post_nms_top_n_test"),
    "transformers_models:build_language_model": ("seq_len",),
    "unet:build_pytorch_unet": ("height", "width"),
}
"""What the builders that take options take; all are positive integers."""

CONFIGURED_BUILDERS = frozenset({"transformers_models:build_language_model"})
"""Builders that also take any scalar of their configuration."""
