"""Every setting that a checkpoint's files may have is honoured, refused, or known to do nothing."""

from __future__ import annotations

import dataclasses

import pytest

from tinymistral import MistralConfig, tokenizer
from tinymistral.sampling import FIELDS
from tinymistral.settings import (
    CONFIG_FILE,
    GENERATION_FILE,
    NO_EFFECT,
    OF_GENERATE,
    REFUSED,
    TOKENIZER_FILE,
    refuse,
    warn_of_unknown,
)

HONOURED = {
    CONFIG_FILE: {field.name for field in dataclasses.fields(MistralConfig)},
    GENERATION_FILE: {*FIELDS},
    TOKENIZER_FILE: {*tokenizer.HONOURED},
}
# vars(GenerationConfig()) of transformers 5.23, without its private ones
GENERATION = """
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight
    assistant_lookbehind bad_words_ids begin_suppress_tokens bos_token_id cache_config
    cache_implementation compile_config constraints continuous_batching_config
    decoder_start_token_id disable_compile diversity_penalty do_sample dola_layers early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_eos_token_id
    guidance_scale is_assistant length_penalty low_memory max_cache_len max_length
    max_matching_ngram_size max_new_tokens max_time min_length min_new_tokens min_p
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups
    num_beams num_return_sequences output_attentions output_hidden_states output_logits
    output_scores pad_token_id penalty_alpha prefill_chunk_size prompt_lookup_num_tokens
    remove_invalid_values renormalize_logits repetition_penalty return_dict_in_generate
    sequence_bias speculation_type stop_strings suppress_tokens target_lookbehind temperature
    token_healing top_h top_k top_p transformers_version typical_p use_cache use_mtp
    watermarking_config
"""
# MistralConfig().to_dict() of transformers 5.23, and what transformers 4 wrote beside
CONFIG = """
    _name_or_path _attn_implementation_autoset add_cross_attention architectures attention_dropout
    auto_map bos_token_id chunk_size_feed_forward cross_attention_hidden_size dtype eos_token_id
    finetuning_task head_dim hidden_act hidden_size id2label initializer_range intermediate_size
    is_decoder is_encoder_decoder label2id max_position_embeddings num_attention_heads
    num_hidden_layers num_key_value_heads output_attentions output_hidden_states pad_token_id prefix
    pretraining_tp problem_type pruned_heads return_dict rms_norm_eps rope_parameters rope_theta
    sep_token_id sliding_window task_specific_params tf_legacy_loss tie_encoder_decoder
    tie_word_embeddings tokenizer_class torchscript transformers_version unsloth_fixed
    unsloth_version use_bfloat16 use_cache vocab_size
"""
# tokenizer_config.json of fine-tunes of Mistral-7B, written by transformers 4 and 5
TOKENIZER = """
    add_bos_token add_eos_token add_prefix_space added_tokens_decoder additional_special_tokens
    backend bos_token chat_template clean_up_tokenization_spaces eos_token extra_special_tokens
    is_local legacy local_files_only max_length model_max_length pad_to_multiple_of pad_token
    pad_token_type_id padding_side processor_class sp_model_kwargs spaces_between_special_tokens
    stride tokenizer_class truncation_side truncation_strategy trust_remote_code unk_token
    use_default_system_prompt use_fast
"""


@pytest.mark.parametrize("file", HONOURED)
def test_a_name_is_in_one_table(file):
    tables = [HONOURED[file], REFUSED[file].keys(), NO_EFFECT[file]]
    assert len(set().union(*tables)) == sum(map(len, tables))


@pytest.mark.parametrize(
    ("file", "names"),
    [(CONFIG_FILE, CONFIG), (GENERATION_FILE, GENERATION), (TOKENIZER_FILE, TOKENIZER)],
)
def test_what_transformers_writes_is_known(file, names):
    warn_of_unknown(file, dict.fromkeys(names.split()), HONOURED[file])  # a warning is an error
    with pytest.warns(UserWarning, match=f"^{file}: 'new' is not known, and has no effect"):
        warn_of_unknown(file, {"new": 1}, HONOURED[file])


def test_options_of_generate_are_known_in_config_json():
    # as transformers 3 and 4 wrote them there
    assert {*FIELDS, *REFUSED[GENERATION_FILE], *NO_EFFECT[GENERATION_FILE]} == OF_GENERATE
    MistralConfig.from_dict({"num_beams": 4, "temperature": 0.5, "length_penalty": 1.0})


def test_a_config_that_says_that_nothing_is_quantized_is_read_in_silence():
    MistralConfig.from_dict({"quantization_config": None, "quantization": None})


@pytest.mark.parametrize("file", REFUSED)
def test_a_refused_setting_is_named_unless_its_value_does_nothing(file):
    for name, harmless in REFUSED[file].items():
        for value in (None, *harmless):
            refuse(file, {name: value})
        with pytest.raises(ValueError, match=f"^{name}: 'x' is not supported; expected none"):
            refuse(file, {name: "x"})
