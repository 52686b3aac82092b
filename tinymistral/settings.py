"""What a checkpoint's files may say beside what is honoured: refused by name, or without effect.

The names are those that transformers and mistral-inference write or read. Each file's module
honours its own fields; every other name that is known stands here, in one of two tables. A name
that is in neither is warned of: it has no effect.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from tinymistral.files.consolidated import CONFIG_FILE, PARAMS_FILE
from tinymistral.renamed import how
from tinymistral.text import listed, quoted, short

GENERATION_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer_config.json"

# Settings that change what is computed. Where a value is null, or one of these, they do not.
REFUSED: dict[str, dict[str, tuple[Any, ...]]] = {
    CONFIG_FILE: {
        "attention_bias": (False,),
        "is_causal": (True,),
        "layer_types": (False,),
        "mlp_bias": (False,),
        "partial_rotary_factor": (1,),
        "per_layer_config": ({},),
    },
    GENERATION_FILE: {
        "assistant_model": (),
        "begin_suppress_tokens": ([],),
        "cache_implementation": (
            *("dynamic", "dynamic_full", "hybrid", "offloaded", "offloaded_hybrid"),
            *("offloaded_static", "sliding_window", "static"),
        ),  # but not "quantized"
        "constraints": ([],),
        "dola_layers": (),
        "encoder_no_repeat_ngram_size": (0,),
        "encoder_repetition_penalty": (1,),
        "epsilon_cutoff": (0, 1),
        "eta_cutoff": (0, 1),
        "exponential_decay_length_penalty": (),
        "force_words_ids": ([],),
        "forced_bos_token_id": (),
        "forced_eos_token_id": (),
        "guidance_scale": (1,),
        "max_time": (),
        "min_length": (0,),
        "num_beams": (1,),
        "penalty_alpha": (0,),
        "remove_invalid_values": (False,),
        "sequence_bias": ({}, []),
        "stop_strings": ([],),
        "token_healing": (False,),
        "top_h": (),
        "typical_p": (1,),
        "watermarking_config": (),
    },
    TOKENIZER_FILE: {"split_special_tokens": (False,)},
}

# Settings that change nothing here: for training, other models, speed, or the form of a result.
NO_EFFECT: dict[str, frozenset[str]] = {
    name: frozenset(names.split())
    for name, names in {
        CONFIG_FILE: """
            add_cross_attention architectures attn_implementation auto_map chunk_size_feed_forward
            cross_attention_hidden_size decoder_start_token_id embd_pdrop finetuning_task
            freeze_trainable_layers gradient_checkpointing hidden_dropout is_decoder
            is_encoder_decoder max_window_layers model_max_length neftune_noise_alpha
            original_max_position_embeddings output_attentions output_hidden_states output_past
            prefix pretraining_tp pruned_heads resid_pdrop return_dict sep_token_id
            task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torchscript
            transformers_version use_bfloat16 use_flash_attention use_sliding_window""",
        GENERATION_FILE: """
            assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight
            assistant_lookbehind bos_token_id cache_config compile_config
            continuous_batching_config decoder_start_token_id disable_compile diversity_penalty
            early_stopping is_assistant length_penalty low_memory max_cache_len
            max_matching_ngram_size num_assistant_tokens num_assistant_tokens_schedule
            num_beam_groups output_attentions output_hidden_states output_logits output_scores
            prefill_chunk_size renormalize_logits return_dict_in_generate speculation_type
            target_lookbehind transformers_version use_cache use_mtp""",
        TOKENIZER_FILE: """
            auto_map backend clean_up_tokenization_spaces cls_token do_lower_case errors
            fix_mistral_regex is_local local_files_only mask_token max_length model_input_names
            model_max_length name_or_path pad_to_multiple_of pad_token_type_id padding
            processor_class response_schema sep_token sp_model_kwargs
            spaces_between_special_tokens special_tokens_map_file stride tokenizer_class
            tokenizer_file truncation truncation_side truncation_strategy trust_remote_code
            unk_token use_default_system_prompt use_fast vocab_file""",
        # mistral-finetune writes `lora` when it has merged the adapters too; where they are not
        # merged, their tensors are refused.
        PARAMS_FILE: "lora max_batch_size max_seq_len model_parallel model_type",
    }.items()
}

# Options of `generate`. Those in config.json count where there is no generation_config.json.
_HONOURED = """
    bad_words_ids do_sample eos_token_id max_length max_new_tokens min_new_tokens min_p
    no_repeat_ngram_size num_return_sequences pad_token_id prompt_lookup_num_tokens
    repetition_penalty seed suppress_tokens temperature top_k top_p
"""
OF_GENERATE = {*_HONOURED.split(), *REFUSED[GENERATION_FILE], *NO_EFFECT[GENERATION_FILE]}


def refuse(file: str, settings: Mapping[str, Any]) -> None:
    """Raise a ValueError, which begins with the name, for a setting that a file may not have."""
    for name, harmless in REFUSED[file].items():
        value = settings.get(name)
        if value is not None and value not in harmless:
            expected = " or ".join(["none", *map(repr, harmless)])
            raise ValueError(
                f"{name}: {short(value)} is not supported; expected {expected}{how(name)}"
            )


def warn_of_unknown(file: str, settings: Mapping[str, Any], honoured: Collection[str]) -> None:
    """Warn of settings that are neither honoured nor in one of the tables.

    Private ones, such as _name_or_path, and unsloth's are notes of programs that wrote the file.
    """
    known = {*honoured, *REFUSED[file], *NO_EFFECT[file]}
    unknown = [n for n in settings if n not in known and not n.startswith(("_", "unsloth_"))]
    if unknown:
        warnings.warn(
            f"{file}: {listed(map(quoted, unknown))} is not known, and has no effect",
            stacklevel=caller(),
        )


def caller() -> int:
    """Return the `stacklevel` that points a warning of our caller at the user's line."""
    package, level = __name__.partition(".")[0], 1
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level
