"""Captioners on disk: a stock LLaVA checkpoint, or, where LLaVA cannot express the model, its stock parts.

What is written here loads in plain transformers (4.57 and 5), transformers.js and vLLM, and says the same words.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion

from limner.models import decoder as decoders
from limner.models.captioner import PrefixConditioningVLM
from limner.models.folder import PARTS
from limner.models.hub import load_stock, local_folder, refuse_missing, refuse_nonfinite
from limner.models.lora import apply_adapter, merged_weights
from limner.models.projection import ProjectionHead
from limner.models.stock_files import (
    add_older_names,
    processor_for_runtimes,
    read_json,
    save_processor,
    save_tokenizer,
    write_json,
)

_ACTIVATION = {"linear": "linear", "mlp": "gelu_pytorch_tanh"}


def expressible(vlm: PrefixConditioningVLM) -> tuple[bool, str]:
    """Whether a stock LLaVA checkpoint can hold this captioner; and a sentence that says so, or why not."""
    vision: Any = vlm.encoder.config
    lm: Any = vlm.language_model
    text = lm.config
    head = lm.get_output_embeddings()
    width = vlm.projection.linear_1.in_features
    why = None
    if vlm.is_convolutional:
        why = f"a LLaVA vision tower gives rows of tokens, and {vision.model_type} gives a map"
    elif vlm.image_tokens != "patches":
        why = f"LLaVA reads every patch, and this captioner means of them ({vlm.image_tokens})"
    elif getattr(vision, "hidden_size", width) != width:
        why = f"the features of {vision.model_type} at layer {vlm.feature_layer} are not as wide as it states"
    elif head.bias is not None:
        why = f"LLaVA's head has no bias, and that of {text.model_type} has one"
    elif getattr(text, "final_logit_softcapping", None) is not None:
        why = f"{text.model_type} caps its logits softly, and LLaVA does not"
    elif (getattr(text, "logit_scale", None) or getattr(text, "logits_scaling", None) or 1) != 1:
        why = f"{text.model_type} scales its logits, and LLaVA does not"
    elif vlm.embed_tokens.embedding_dim != text.hidden_size:
        why = f"the embeddings of this {text.model_type} are narrower than its layers"
    if why:
        return False, f"This captioner will be saved as stock parts (encoder/, decoder/, projection): {why}."
    return True, "This captioner will be saved as a stock LLaVA checkpoint, which transformers loads by itself."


def save_captioner(vlm: PrefixConditioningVLM, folder: str | Path) -> None:
    """Writes the captioner, with LoRA merged, in fp32: complete, or not at all.

    The folder is written aside and renamed; a model that stood there is replaced only at the end. ``vlm`` is left
    as it is.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    with _aside(Path(folder)) as aside:
        if expressible(vlm)[0]:
            _save_llava(vlm, aside)
        else:
            _save_parts(vlm, aside)


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield aside
        _open_to_readers(aside)
        if folder.exists():
            old = aside.with_name(aside.name + "-old")
            folder.rename(old)
            aside.rename(folder)
            shutil.rmtree(old)
        else:
            aside.rename(folder)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise OSError(
                f"The model could not be saved to {folder}: {error}; nothing was written there."
            ) from error
        raise


def _open_to_readers(folder: Path) -> None:
    """Temporary folders and safetensors' files are the writer's alone; the model gets the usual permissions."""
    usual = next(folder.rglob("*.json")).stat().st_mode
    for path in folder.rglob("*.safetensors"):
        path.chmod(usual)
    folder.chmod(usual | 0o111 & (usual >> 2))  # who may read may enter


# ---- one stock LLaVA checkpoint ---------------------------------------------------------------------------------


def _save_llava(vlm: PrefixConditioningVLM, folder: Path) -> None:
    lm: Any = vlm.language_model
    config = llava_config(vlm)
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    weights = _llava_weights(vlm, config)
    llava.load_state_dict(weights, assign=True, strict=not config.tie_word_embeddings)
    llava.tie_weights()
    llava.generation_config = lm.generation_config
    _write_weights(llava, weights, folder)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    add_older_names(folder / "config.json")
    lm.generation_config.save_pretrained(folder)
    save_processor(vlm, folder)


def llava_config(vlm: PrefixConditioningVLM) -> LlavaConfig:
    """The configuration of the stock LLaVA that computes what ``vlm`` computes."""
    lm: Any = vlm.language_model
    text = type(lm.config)(**_plain(lm.config))
    text.architectures = [type(lm).__name__]
    vision = type(vlm.encoder.config)(**_plain(vlm.encoder.config))
    vision.hidden_size = vlm.projection.linear_1.in_features  # by this LLaVA sizes its projector (LeViT has none)
    # The tie key of LLaVA is `language_model.embed_tokens`: a family that names it otherwise is saved untied.
    text.tie_word_embeddings = bool(text.tie_word_embeddings) and hasattr(decoders.stack(lm), "embed_tokens")
    llava: Any = LlavaConfig
    return llava(
        vision_config=vision,
        text_config=text,
        image_token_index=decoders.image_id(vlm.tokenizer),
        image_seq_length=vlm.num_prefix_tokens,
        projector_hidden_act=_ACTIVATION[vlm.projection.kind],
        vision_feature_select_strategy="full",
        vision_feature_layer=vlm.feature_layer,
        multimodal_projector_bias=True,
        tie_word_embeddings=text.tie_word_embeddings,
        pad_token_id=text.pad_token_id,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        dtype="float32",
    )


def _plain(config: Any) -> dict[str, Any]:
    settings = config.to_dict()
    return {
        key: value for key, value in settings.items() if key not in ("model_type", "transformers_version", "dtype")
    }


def _llava_weights(vlm: PrefixConditioningVLM, config: LlavaConfig) -> dict[str, torch.Tensor]:
    """All weights by the names that transformers 5 gives LLaVA's modules, in fp32 on the CPU."""
    lm: Any = vlm.language_model
    weights = {f"model.vision_tower.{k}": v for k, v in vlm.encoder.state_dict().items()}
    prefix = lm.base_model_prefix + "."
    merged = merged_weights(vlm.decoder)
    for name, tensor in merged.items():
        if name.startswith(prefix):
            weights[f"model.language_model.{name.removeprefix(prefix)}"] = tensor
    if not config.tie_word_embeddings:
        name = next(n for n, module in lm.named_modules() if module is lm.get_output_embeddings())
        weights["lm_head.weight"] = merged[f"{name}.weight"]
    linear_1, linear_2 = vlm.projection.linear_1, vlm.projection.linear_2
    if linear_2 is None:  # LLaVA always has a second layer: the identity, which costs nothing in exactness
        width = linear_1.out_features
        second = {"weight": torch.eye(width), "bias": torch.zeros(width)}
    else:
        second = dict(linear_2.state_dict())
    for layer, state in (("linear_1", dict(linear_1.state_dict())), ("linear_2", second)):
        weights |= {f"model.multi_modal_projector.{layer}.{k}": v for k, v in state.items()}
    return _fp32_all(weights)


def _fp32_all(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: (v.float() if v.is_floating_point() else v).detach().cpu().contiguous() for k, v in weights.items()}


def _write_weights(model: PreTrainedModel, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Writes by the names of before 4.52, which every runtime reads: transformers 4.57 would fill a vision tower
    that is named as 5.23 names it with random numbers, and only warn."""
    named = revert_weight_conversion(model, weights)
    if model.config.vision_config.model_type in ("siglip_vision_model", "clip_vision_model"):
        tower = "vision_tower."
        named = {
            (f"{tower}vision_model.{k.removeprefix(tower)}" if k.startswith(tower) else k): v
            for k, v in named.items()
        }
    seen: set[int] = set()
    for key, tensor in named.items():  # safetensors refuses shared memory: a head that was tied, saved untied
        named[key] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


# ---- stock parts ------------------------------------------------------------------------------------------


def _save_parts(vlm: PrefixConditioningVLM, folder: Path) -> None:
    encoder: Any = vlm.encoder
    lm: Any = vlm.language_model
    encoder.save_pretrained(folder / "encoder", state_dict=_fp32_all(encoder.state_dict()))
    pixels = processor_for_runtimes(vlm)
    write_json(folder / "encoder" / "preprocessor_config.json", pixels)
    merged = _fp32_all(merged_weights(vlm.decoder))
    _bare_copy(lm).save_pretrained(folder / "decoder", state_dict=merged)
    add_older_names(folder / "decoder" / "config.json")
    save_tokenizer(vlm.tokenizer, folder / "decoder")
    projection = _fp32_all(vlm.projection.state_dict())
    save_file(projection, folder / "projection.safetensors", metadata={"format": "pt"})
    settings = {
        "format": "limner captioner, stock parts",
        "why": expressible(vlm)[1],
        "projection_type": vlm.projection.kind,
        "vision_feature_layer": vlm.feature_layer,
        "image_tokens": vlm.image_tokens,
        "image_seq_length": vlm.num_prefix_tokens,
    }
    write_json(folder / PARTS, settings)


def _bare_copy(lm: Any) -> Any:
    """An empty model of the same configuration, so that saving sees no adapters."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(lm.config)
    empty.generation_config = lm.generation_config
    return empty


# ---- an adapter by itself -----------------------------------------------------------------------------------


def save_adapter(vlm: PrefixConditioningVLM, folder: str | Path) -> None:
    """The adapter in PEFT form, with the projection beside it: what training changed, a few megabytes.

    Raises:
        ValueError: the captioner has no adapter.
        OSError: the folder cannot be written.
    """
    if not hasattr(vlm.decoder, "get_base_model"):
        raise ValueError("This captioner has no adapter to save: its whole decoder was trained.")
    with _aside(Path(folder)) as aside:
        # Without the last: peft asks the hub how large the vocabulary was, and saves all embeddings if it grew.
        vlm.decoder.save_pretrained(str(aside), save_embedding_layers=False)
        save_file(_fp32_all(vlm.projection.state_dict()), aside / "projection.safetensors")


def load_adapter(vlm: PrefixConditioningVLM, folder: str | Path) -> None:
    """Applies what `save_adapter` wrote to a captioner of the same stock parts, which goes on training from there.

    Raises:
        FileNotFoundError: the folder lacks a file.
        ValueError: the adapter is for another model.
    """
    _require(Path(folder), ("adapter_config.json", "adapter_model.safetensors", "projection.safetensors"))
    weights = _projection_weights(Path(folder))
    ours = vlm.projection.state_dict()
    if {name: tensor.shape for name, tensor in weights.items()} != {n: t.shape for n, t in ours.items()}:
        raise ValueError(f"The projection in {folder} is of another shape than this captioner's.")
    vlm.decoder = apply_adapter(vlm.language_model, folder)
    vlm.projection.load_state_dict(weights)


# ---- reading ----------------------------------------------------------------------------------------------


def read_captioner(
    source: str | Path, revision: str | None = None, cache_dir: str | Path | None = None
) -> PrefixConditioningVLM:
    """A captioner from a folder or a hub repository, in fp32, in evaluation, with nothing set to train.

    Raises:
        FileNotFoundError: the folder does not exist or lacks a file.
        OSError: the hub repository cannot be had.
        ValueError: the checkpoint is not a captioner that Limner can read, or lacks weights.
    """
    folder = local_folder(source, "captioner", revision, cache_dir)
    _require(folder, ("config.json",) if not (folder / PARTS).is_file() else ("projection.safetensors",))
    vlm = _read_parts(folder) if (folder / PARTS).is_file() else _read_llava(folder)
    vlm.requires_grad_(False)
    vlm.freeze_encoder()
    return vlm.eval()


def _require(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"The model folder {folder} lacks {name}: it is not a complete captioner.")


def _read_llava(folder: Path) -> PrefixConditioningVLM:
    config = load_stock(AutoConfig, folder, "captioner")
    if config.model_type != "llava":
        raise ValueError(
            f"{folder} holds a model of type {config.model_type}, not a captioner (LLaVA or stock parts)."
        )
    if config.vision_feature_select_strategy != "full" or not isinstance(config.vision_feature_layer, int):
        raise ValueError(
            f"{folder} selects its features otherwise than Limner's captioners do (one layer, 'full')."
        )
    _require(folder, ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"))
    if not list(folder.glob("model*.safetensors")):
        raise FileNotFoundError(
            f"The model folder {folder} lacks model.safetensors: it is not a complete captioner."
        )
    llava = load_stock(LlavaForConditionalGeneration, folder, "captioner", dtype=torch.float32)
    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(config.text_config)
    setattr(lm, lm.base_model_prefix, llava.model.language_model)
    lm.set_output_embeddings(llava.lm_head)
    lm.generation_config = llava.generation_config
    words = load_stock(AutoTokenizer, folder, "tokenizer")
    pixels = read_json(folder / "preprocessor_config.json")
    projection = _projection_of(llava, folder)
    return PrefixConditioningVLM(
        llava.model.vision_tower, projection, lm, words, pixels, config.vision_feature_layer
    )


def _projection_weights(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / "projection.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'projection.safetensors'} cannot be read: {error}.") from error


def _projection_of(llava: Any, folder: Path) -> ProjectionHead:
    theirs, act = llava.model.multi_modal_projector, llava.config.projector_hidden_act
    kinds: dict[str, Any] = {activation: kind for kind, activation in _ACTIVATION.items()}
    second = theirs.linear_2
    if act not in kinds or (
        kinds[act] == "linear" and not torch.equal(second.weight, torch.eye(len(second.weight)))
    ):
        raise ValueError(f"The projection in {folder} (activation {act}) is none that Limner trains.")
    projection = ProjectionHead(theirs.linear_1.in_features, theirs.linear_1.out_features, kinds[act])
    projection.linear_1 = theirs.linear_1
    if kinds[act] == "mlp":
        projection.linear_2 = second
    return projection


def _read_parts(folder: Path) -> PrefixConditioningVLM:
    settings = read_json(folder / PARTS)
    if not {"projection_type", "vision_feature_layer"} <= set(settings):
        raise ValueError(f"{folder / PARTS} does not say projection_type and vision_feature_layer.")
    for part in ("encoder", "decoder"):
        _require(folder, (f"{part}/config.json", f"{part}/model.safetensors"))
    _require(folder, ("encoder/preprocessor_config.json", "decoder/tokenizer.json"))
    encoder = load_stock(AutoModel, folder / "encoder", "vision encoder", dtype=torch.float32)
    lm = load_stock(AutoModelForCausalLM, folder / "decoder", "decoder", dtype=torch.float32)
    words = load_stock(AutoTokenizer, folder / "decoder", "tokenizer")
    pixels = read_json(folder / "encoder" / "preprocessor_config.json")
    weights = _projection_weights(folder)
    text_width, vision_width = weights["linear_1.weight"].shape
    projection = ProjectionHead(vision_width, text_width, settings["projection_type"])
    report: Any = projection.load_state_dict(weights, strict=False)
    refuse_missing({"missing_keys": report.missing_keys, "mismatched_keys": []}, folder, "projection")
    refuse_nonfinite(projection, folder, "projection")
    layer, tokens = settings["vision_feature_layer"], settings.get("image_tokens", "patches")
    return PrefixConditioningVLM(encoder, projection, lm, words, pixels, layer, tokens)
