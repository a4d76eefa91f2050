"""Tiny zero-shot models with random weights, in folders as the Hub holds CLIP's, SigLIP's, SigLIP 2's and others'.

Each function writes configuration, weights, image processor and tokenizer, and returns the model. The tokenizers know
small letters, digits and a few marks, one token each; of others CLIP's and SigLIP's know none.
"""

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AlignConfig,
    AlignModel,
    AltCLIPConfig,
    AltCLIPModel,
    BertTokenizer,
    BlipConfig,
    BlipImageProcessor,
    BlipModel,
    ChineseCLIPConfig,
    ChineseCLIPImageProcessor,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPSegConfig,
    CLIPSegModel,
    CLIPTokenizer,
    EfficientNetImageProcessor,
    GemmaTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    Tipsv2Config,
    Tipsv2ImageProcessor,
    Tipsv2Model,
    Tipsv2Tokenizer,
    ViTImageProcessor,
    XLMRobertaTokenizer,
)

SIZE, PATCH, WIDTH = 32, 8, 32
LETTERS = string.ascii_lowercase + string.digits + ".,'!?-()"
_LAYERS = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_LAYERS, "max_position_embeddings": 64, "vocab_size": 300}
_OF_CLIP = {**_TEXT, "bos_token_id": 298, "eos_token_id": 299, "pad_token_id": 299}
_ENDS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 1}
_EDGES = {"height": SIZE, "width": SIZE}
_VISION = {**_LAYERS, "image_size": SIZE, "patch_size": PATCH}


def clip_folder(folder: Path, *, seed: int = 0, is_nested: bool = False, **fields: Any) -> CLIPModel:
    """As openai/clip-vit-base-patch32, but for its sizes.

    Args:
        is_nested: whether its image processor stands in processor_config.json alone, as transformers 5 writes it.
        **fields: of its configuration.
    """
    config = CLIPConfig(**{"text_config": _OF_CLIP, "vision_config": dict(_VISION), "projection_dim": 16, **fields})
    model = _lively(CLIPModel, config, seed)
    model.save_pretrained(folder)
    tokenizer, images = _clip_tokenizer(), CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=_EDGES)
    if is_nested:
        CLIPProcessor(images, tokenizer).save_pretrained(folder)
    else:
        images.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model


def siglip_folder(folder: Path, *, seed: int = 0, tokenizer: Any = None, **fields: Any) -> SiglipModel:
    """As google/siglip-base-patch16-224, but for its sizes, and for a tokenizer that needs no sentencepiece."""
    config = SiglipConfig(**{"text_config": {**_TEXT, **_ENDS}, "vision_config": dict(_VISION), **fields})
    model = _lively(SiglipModel, config, seed)
    model.save_pretrained(folder)
    SiglipImageProcessor(size=_EDGES).save_pretrained(folder)
    (tokenizer or _siglip_tokenizer()).save_pretrained(folder)
    return model


def siglip2_folder(folder: Path, *, seed: int = 0, **fields: Any) -> SiglipModel:
    """As google/siglip2-base-patch16-224: of SigLIP's type, with Gemma's tokenizer."""
    return siglip_folder(folder, seed=seed, tokenizer=gemma_tokenizer(), **fields)


def naflex_folder(folder: Path, *, seed: int = 0, **fields: Any) -> Siglip2Model:
    """As google/siglip2-base-patch16-naflex: of SigLIP 2's own type, whose images are rows of patches."""
    num_patches = (SIZE // PATCH) ** 2
    vision = {**_LAYERS, "patch_size": PATCH, "num_patches": num_patches}
    config = Siglip2Config(**{"text_config": {**_TEXT, **_ENDS}, "vision_config": vision, **fields})
    model = _lively(Siglip2Model, config, seed)
    model.save_pretrained(folder)
    Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=num_patches).save_pretrained(folder)
    gemma_tokenizer().save_pretrained(folder)
    return model


FOLDERS = {
    "clip": clip_folder,
    "siglip": siglip_folder,
    "siglip2": siglip2_folder,
    "naflex": naflex_folder,
}


def gemma_tokenizer() -> GemmaTokenizer:
    """One that neither lower-cases nor strips, ends a text with an end token and gives no mask, as SigLIP 2's do."""
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁")
    letters = [*LETTERS, *string.ascii_uppercase]
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    tokenizer = GemmaTokenizer(
        vocab=vocabulary, merges=[], model_max_length=64, padding_side="right", model_input_names=["input_ids"]
    )
    ending = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = ending
    return tokenizer


def _siglip_tokenizer() -> PreTrainedTokenizerFast:
    """With the end token as padding, and as SigLIP's one that lower-cases and leaves punctuation out."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -3.0) for piece in ["▁", *LETTERS])]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(".", "")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
        model_input_names=["input_ids"],
    )


def _clip_tokenizer() -> CLIPTokenizer:
    vocabulary = {token: index for index, token in enumerate(c + end for c in LETTERS for end in ("", "</w>"))}
    vocabulary |= {"<|startoftext|>": 298, "<|endoftext|>": 299}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=64)


def _bert_tokenizer() -> BertTokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + letter for letter in LETTERS)]
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, model_max_length=64)


def _roberta_tokenizer() -> XLMRobertaTokenizer:
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return XLMRobertaTokenizer(vocab=[*special, *((c, -3.0) for c in LETTERS), ("<mask>", 0.0)], model_max_length=62)


def _align() -> tuple[Any, ...]:
    """With an EfficientNet of two blocks."""
    blocks = {"in_channels": [32, 16], "out_channels": [16, 24], "kernel_sizes": [3, 3], "strides": [1, 2]}
    repeats = {"num_block_repeats": [1, 1], "expand_ratios": [1, 6], "depthwise_padding": []}
    scale = {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 24, "hidden_size": 8}
    vision = {"image_size": SIZE, **blocks, **repeats, **scale}
    images = EfficientNetImageProcessor(size=_EDGES, include_top=False, do_center_crop=False)
    config = AlignConfig(text_config={**_TEXT, "pad_token_id": 0}, vision_config=vision, projection_dim=8)
    return AlignModel, config, _bert_tokenizer(), images


def _altclip() -> tuple[Any, ...]:
    text = {**_TEXT, "project_dim": 24, "pad_token_id": 1}
    config = AltCLIPConfig(text_config=text, vision_config=_VISION, projection_dim=16)
    return (
        AltCLIPModel,
        config,
        _roberta_tokenizer(),
        CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=_EDGES),
    )


def _blip() -> tuple[Any, ...]:
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3}
    config = BlipConfig(
        text_config={**_TEXT, **ends, "encoder_hidden_size": WIDTH}, vision_config=_VISION, projection_dim=16
    )
    return BlipModel, config, _bert_tokenizer(), BlipImageProcessor(size=_EDGES)


def _chinese_clip() -> tuple[Any, ...]:
    config = ChineseCLIPConfig(text_config={**_TEXT, "pad_token_id": 0}, vision_config=_VISION, projection_dim=16)
    return ChineseCLIPModel, config, _bert_tokenizer(), ChineseCLIPImageProcessor(size=_EDGES, do_center_crop=False)


def _clipseg() -> tuple[Any, ...]:
    config = CLIPSegConfig(text_config=_OF_CLIP, vision_config=_VISION, projection_dim=16)
    return CLIPSegModel, config, _clip_tokenizer(), ViTImageProcessor(size=_EDGES)


def _metaclip_2() -> tuple[Any, ...]:
    text = {**_TEXT, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = MetaClip2Config(text_config=text, vision_config=_VISION, projection_dim=16)
    return (
        MetaClip2Model,
        config,
        _roberta_tokenizer(),
        CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=_EDGES),
    )


def _tipsv2() -> tuple[Any, ...]:
    vision = {name: value for name, value in _VISION.items() if name != "intermediate_size"}
    config = Tipsv2Config(text_config={**_TEXT, "pad_token_id": 0}, vision_config={**vision, "mlp_ratio": 2})
    tokenizer = Tipsv2Tokenizer(
        vocab={c: index for index, c in enumerate(["<pad>", "<unk>", "▁", *LETTERS])}, merges=[]
    )
    images = Tipsv2ImageProcessor(size=_EDGES, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    return Tipsv2Model, config, tokenizer, images


OTHERS = {
    "align": _align,
    "altclip": _altclip,
    "blip": _blip,
    "chinese_clip": _chinese_clip,
    "clipseg": _clipseg,
    "metaclip_2": _metaclip_2,
    "tipsv2": _tipsv2,
}


def other_folder(folder: Path, kind: str, *, seed: int = 0) -> Any:
    """One of the other architectures that transformers has; see `OTHERS`."""
    model_class, config, tokenizer, images = OTHERS[kind]()
    model = _lively(model_class, config, seed)
    for part in (model, tokenizer, images):
        part.save_pretrained(folder)
    return model


def _lively(model_class: type[PreTrainedModel], config: Any, seed: int) -> Any:
    """Random weights of a size that lets every pixel and every token matter, and a scale as trained models have it."""
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
        for name, value in (("logit_scale", 3.0), ("logit_bias", -5.0), ("temperature", 0.05)):
            if hasattr(model, name):
                getattr(model, name).fill_(value)
    return model
