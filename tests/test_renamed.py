"""What is written otherwise than with transformers says how, and the rest is written alike."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from goldens import DEMO, FIXTURES

import tinymistral
from tinymistral import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralForCausalLM,
    MistralForSequenceClassification,
)
from tinymistral.renamed import HOW
from tinymistral.sampling import FIELDS

GQA = FIXTURES / "models" / "gqa"
MODEL = MistralForCausalLM.from_pretrained(GQA)
TOKENIZER = AutoTokenizer.from_pretrained(DEMO)
INPUTS = TOKENIZER(["a", "b"])


def test_the_snippet_of_the_page_runs():
    # https://huggingface.co/docs/transformers/model_doc/mistral, the import and .to(device) changed
    model = AutoModelForCausalLM.from_pretrained(DEMO)
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    prompt = "My favourite condiment is"
    model_inputs = tokenizer([prompt])
    generated_ids = model.generate(**model_inputs, max_new_tokens=5, do_sample=True)
    assert tokenizer.batch_decode(generated_ids)[0].startswith("<s> My favourite condiment is")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: MistralForCausalLM.from_pretrained(GQA, torch_dtype="float16"), "dtype="),
        (lambda: MistralForCausalLM.from_pretrained(GQA, device_map="auto"), 'backend="cupy"'),
        (lambda: MistralForCausalLM.from_pretrained(GQA, attn_implementation="sdpa"), "leave it"),
        (lambda: MistralForSequenceClassification.from_pretrained(GQA, num_labels=3), "config"),
        (lambda: MistralForCausalLM.from_pretrained(GQA, load_in_4bit=True), "quantized"),
        (lambda: AutoTokenizer.from_pretrained(DEMO, use_fast=False), "leave it out"),
        (lambda: MODEL.to("cuda"), 'backend="cupy"'),
        (lambda: MODEL.half(), 'dtype="float16"'),
        (lambda: MODEL.eval(), "leave it out"),
        (lambda: MODEL.generate([[5]], streamer=print), "generate_stream"),
        (lambda: MODEL.generate([[5]], num_beams=4), "num_beams: 4 is not supported"),
        (lambda: MODEL.generate([[5]], stop_strings=["a"]), "stop_strings: .*; write stop="),
        (lambda: MODEL.generate([[5]], use_cache=True), "leave it out"),
        (lambda: MODEL.generate([[5]], output_scores=True), "return_dict_in_generate=True"),
        (lambda: MODEL.generate(INPUTS), r"\*\*"),
        (lambda: MODEL(INPUTS), r"\*\*"),
        (lambda: MODEL([[5]])[0], "write output.past_key_values or output.logits"),
        (lambda: MODEL([[5]], token_type_ids=[[0]]), "leave it out"),
        (lambda: INPUTS.to("cuda"), 'backend="cupy"'),
        (lambda: TOKENIZER("a", truncation=True), "cut the ids"),
        (lambda: TOKENIZER("a", return_tensors="pt"), "leave it out or give 'np'"),
        (lambda: TOKENIZER.apply_chat_template([], return_tensors="pt"), "returns a list"),
        (lambda: tinymistral.pipeline, "tokenizer"),
        (lambda: tinymistral.AutoConfig, "MistralConfig"),
        (lambda: setattr(MODEL, "dtype", "float16"), "model.backend.dtype"),
        (lambda: setattr(TOKENIZER, "truncation_side", "left"), "has no effect"),
    ],
)
def test_what_is_written_otherwise_says_how(call, says):
    with pytest.raises((AttributeError, TypeError, ValueError), match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_name_that_exists_is_not_called_renamed():
    for name in HOW:
        assert name not in dir(tinymistral)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.float16, "float16"),
        (np.dtype("float64"), "float64"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (SimpleNamespace, "float32"),
    ],
)
def test_a_dtype_may_be_that_of_numpy(dtype, name):
    if dtype is SimpleNamespace:
        with pytest.raises(ValueError, match=r"dtype .* is not one that backend 'numpy' supports"):
            MistralForCausalLM.from_pretrained(GQA, dtype=dtype)
    else:
        assert MistralForCausalLM.from_pretrained(GQA, dtype=dtype).backend.dtype == name


@pytest.mark.parametrize("stored", ["bfloat16", "float64", None])
def test_dtype_auto_is_that_of_the_checkpoint(stored, tmp_path):
    shutil.copytree(GQA, tmp_path / "model", copy_function=shutil.copyfile)
    file = tmp_path / "model" / "config.json"
    fields = json.loads(file.read_text("utf-8")) | {"dtype": stored, "torch_dtype": None}
    file.write_text(json.dumps(fields), encoding="utf-8")
    model = MistralForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert model.backend.dtype == (stored or "float32")


def test_a_model_says_what_it_is():
    # 3 layers of 2·32·32 + 2·32·16 + 3·32·48 weights and 2 norms of 32; 2·67·32 + 32
    assert repr(MODEL) == (
        "MistralForCausalLM(27,552 parameters, num_hidden_layers=3, hidden_size=32, "
        "sliding_window=5, vocab_size=67, backend='numpy', dtype='float32')"
    )


def test_help_of_generate_explains_each_option():
    text = inspect.getdoc(MODEL.generate)
    assert not [name for name in [*FIELDS, "stop", "tokenizer"] if name not in text]
    assert "step for each new token" in inspect.getdoc(MODEL.generate_stream)


def test_the_package_lists_its_names_and_finds_its_modules():
    assert {"MistralForCausalLM", "AutoTokenizer", "DEMO", "__version__"} <= set(dir(tinymistral))
    assert "TYPE_CHECKING" not in dir(tinymistral)
    code = (
        "import sys, tinymistral\n"
        "assert 'numpy' not in sys.modules\n"
        "assert not hasattr(tinymistral, 'banana')\n"
        "assert tinymistral.scoring.score.__name__ == 'score'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
