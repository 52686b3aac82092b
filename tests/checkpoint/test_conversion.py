"""Conversion, compared with fixtures that have the same model in both formats."""

import importlib.resources
import json
import os
import shutil
import stat
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cli_runner import copy_of_demo
from goldens import DEMO, FIXTURES, MODELS
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as MistralCommonTokenizer
from mistral_common.tokens.tokenizers.sentencepiece import get_spm_version

from tinymistral import (
    MistralConfig,
    MistralForCausalLM,
    MistralForSequenceClassification,
    MistralTokenizer,
)
from tinymistral.checkpoint import read_tensors
from tinymistral.checkpoint.conversion import check_size, convert
from tinymistral.files.pth import read_pth

TWINS = ["half", "no_window", "tied"]
LOSES = pytest.mark.filterwarnings("ignore:params.json has no place for")
SMALL = MistralConfig(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=6,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def bits(tensors) -> dict[str, tuple]:
    return {name: (str(t.dtype), t.shape, t.tobytes()) for name, t in tensors.items()}


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


def with_tokenizer(source: Path, folder: Path) -> Path:
    """Copy a fixture, which has no tokenizer."""
    shutil.copytree(source, folder)
    shutil.copyfile(DEMO / "tokenizer.model", folder / "tokenizer.model")
    return folder


@pytest.fixture
def raw(tmp_path) -> Path:
    return with_tokenizer(FIXTURES / "raw" / "no_window", tmp_path / "raw")


def save(folder: Path, config: MistralConfig = SMALL, dtype=np.float32) -> Path:
    """Save a random model; `dtype` is that of all tensors, or a function of a tensor's number."""
    model = MistralForCausalLM(config, seed=3)
    for i, (name, tensor) in enumerate(model.tensors.items()):
        model.tensors[name] = tensor.astype(dtype(i) if callable(dtype) else dtype)
    model.save_pretrained(folder)
    shutil.copyfile(DEMO / "tokenizer.model", folder / "tokenizer.model")
    return folder


# The fixtures of one format were made from the other by the maintainers' script, with torch.
@pytest.mark.parametrize("name", TWINS)
def test_a_raw_checkpoint_becomes_its_twin_to_the_byte(tmp_path, name):
    source = with_tokenizer(FIXTURES / "raw" / name, tmp_path / "raw")
    convert(source, tmp_path / "new" / "hf")
    new, twin = tmp_path / "new" / "hf", FIXTURES / "models" / name
    assert content_of(new).keys() == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.model")
    }
    assert (new / "model.safetensors").read_bytes() == (twin / "model.safetensors").read_bytes()
    assert (new / "tokenizer.model").read_bytes() == (DEMO / "tokenizer.model").read_bytes()
    config = MistralConfig.from_pretrained(new).to_dict()
    assert config == MistralConfig.from_pretrained(twin).to_dict() | {
        "max_position_embeddings": 32768
    }
    fields = json.loads((new / "config.json").read_text("utf-8"))
    assert fields["architectures"] == ["MistralForCausalLM"]
    ids = json.loads((new / "generation_config.json").read_text("utf-8"))
    assert ids == {"bos_token_id": 1, "eos_token_id": 2}


@LOSES
@pytest.mark.parametrize("name", TWINS)
def test_a_checkpoint_becomes_its_raw_twin(tmp_path, name):
    source = with_tokenizer(FIXTURES / "models" / name, tmp_path / "hf")
    convert(source, tmp_path / "raw", to="raw")
    new, twin = tmp_path / "raw", FIXTURES / "raw" / name
    assert content_of(new).keys() == {
        *("consolidated.safetensors", "params.json", "tokenizer.model")
    }
    shutil.copyfile(new / "consolidated.safetensors", tmp_path / "model.safetensors")
    if name == "half":
        shutil.copytree(twin, tmp_path / "twin")
        (tmp_path / "twin" / "consolidated.safetensors").rename(
            tmp_path / "twin" / "model.safetensors"
        )
        expected = read_tensors(tmp_path / "twin")
    else:
        expected = read_pth(twin / "consolidated.00.pth")
    assert bits(read_tensors(tmp_path)) == bits(expected)
    params = json.loads((new / "params.json").read_text("utf-8"))
    given = json.loads((twin / "params.json").read_text("utf-8"))
    if "sliding_window" in given:
        given["sliding_window"] = int(given["sliding_window"])  # which is text in "tied"
    assert params.items() >= given.items()
    assert MistralConfig.from_pretrained(new) == MistralConfig.from_pretrained(twin)


@LOSES
@pytest.mark.parametrize("name", [*MODELS, "mixed", "float16"])
def test_converting_there_and_back_changes_no_bit(tmp_path, name):
    dtypes = [np.float32, np.float16, ml_dtypes.bfloat16]
    if name in MODELS:
        source = with_tokenizer(FIXTURES / "models" / name, tmp_path / "hf")
    else:
        dtype = np.float16 if name == "float16" else lambda i: dtypes[i % 3]
        source = save(tmp_path / "hf", dtype=dtype)
    convert(source, tmp_path / "raw", to="raw")
    convert(tmp_path / "raw", tmp_path / "hf2", max_shard_size=2000)
    convert(tmp_path / "hf2", tmp_path / "raw2", to="raw")
    convert(tmp_path / "raw2", tmp_path / "hf3")
    assert bits(read_tensors(tmp_path / "hf2")) == bits(read_tensors(source))
    assert bits(read_tensors(tmp_path / "hf3")) == bits(read_tensors(source))
    assert content_of(tmp_path / "raw2") == content_of(tmp_path / "raw")
    config = MistralConfig.from_pretrained(source).to_dict()
    # Not in params.json; the dtype is that of all tensors.
    config["max_position_embeddings"] = 32768
    config["dtype"] = {"mixed": None, "sharded": None, "float16": "float16"}.get(
        name, config["dtype"]
    )
    assert MistralConfig.from_pretrained(tmp_path / "hf3").to_dict() == config


def test_weights_larger_than_a_shard_make_several_and_an_index(tmp_path, raw):
    convert(raw, tmp_path / "hf", max_shard_size="20KB")
    shards = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    assert len(shards) >= 4  # of 79,232 bytes
    twin = FIXTURES / "models" / "no_window"
    assert bits(read_tensors(tmp_path / "hf")) == bits(read_tensors(twin))
    assert all(path.stat().st_size < 20_000 + 3_000 for path in shards)  # with a header each
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text("utf-8"))
    assert index["metadata"]["total_size"] == 79_232
    assert set(index["weight_map"].values()) == {path.name for path in shards}


def test_the_published_story_of_stories260k_survives(tmp_path, test_models):
    # llama2.c publishes this text for the model, greedy from <s> alone.
    convert(test_models / "stories260k" / "raw", tmp_path / "hf", model_size="292.8K")
    model = MistralForCausalLM.from_pretrained(tmp_path / "hf")
    ids = model.generate([[1]], max_new_tokens=200)[0]
    text = MistralTokenizer.from_pretrained(tmp_path / "hf").decode(ids, skip_special_tokens=True)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball. She wanted to play with it, but it was too high."
        "\nLily's mom said, "
    )


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_the_tokenizer_is_written_under_one_name(tmp_path, raw, version):
    (raw / "tokenizer.model").rename(raw / f"tokenizer.model.{version}")
    convert(raw, tmp_path / "hf")
    found = {path.name: path.read_bytes() for path in (tmp_path / "hf").glob("tokenizer*")}
    assert found == {"tokenizer.model": (DEMO / "tokenizer.model").read_bytes()}


@LOSES
@pytest.mark.parametrize(
    ("vocabulary", "name"),
    [
        ("tokenizer.model.v1", "tokenizer.model"),
        ("mistral_instruct_tokenizer_240216.model.v2", "tokenizer.model.v2"),
        ("mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model.v3"),
        ("mistral_instruct_tokenizer_241114.model.v7", "tokenizer.model.v7"),
    ],
)
def test_the_name_of_a_raw_tokenizer_says_its_version_as_mistral_common_reads_it(
    tmp_path, vocabulary, name
):
    source, data = save(tmp_path / "hf"), importlib.resources.files("mistral_common") / "data"
    (source / "tokenizer.model").write_bytes((data / vocabulary).read_bytes())
    convert(source, tmp_path / "raw", to="raw")
    assert [path.name for path in (tmp_path / "raw").glob("tokenizer*")] == [name]
    version = vocabulary.rpartition(".")[2]
    assert get_spm_version(tmp_path / "raw" / name).value == version
    messages = [{"role": "user", "content": "Hello"}]
    if version != "v7":  # whose chat format is refused
        theirs = MistralCommonTokenizer.from_file(str(tmp_path / "raw" / name))
        request = ChatCompletionRequest(messages=messages)
        ours = MistralTokenizer.from_pretrained(tmp_path / "raw").apply_chat_template(messages)
        assert ours == theirs.encode_chat_completion(request).tokens
    convert(tmp_path / "raw", tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == (data / vocabulary).read_bytes()
    convert(tmp_path / "again", tmp_path / "raw", to="raw", force=True)


@LOSES
def test_the_files_of_added_tokens_are_written_along_and_replaced(tmp_path):
    source = save(tmp_path / "hf")
    names = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
    for name in names:
        (source / name).write_text("{}", "utf-8")
    (source / "tokenizer.json").write_text('{"added_tokens": []}', "utf-8")
    (source / "chat_template.jinja").write_text("[INST]", "utf-8")
    for force in (False, True):
        convert(source, tmp_path / "raw", to="raw", force=force)
        assert content_of(tmp_path / "raw").keys() >= {
            *names,
            "tokenizer.json",
            "chat_template.jinja",
        }


def test_fields_that_params_json_does_not_have_are_a_warning(tmp_path):
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 40}
    model = copy_of_demo(tmp_path / "model", settings, max_position_embeddings=4096)
    with pytest.warns(UserWarning) as told:
        convert(model, tmp_path / "raw", to="raw")
    assert [str(warning.message) for warning in told] == [
        "params.json has no place for max_position_embeddings (4096), initializer_range (0.07), "
        "do_sample (True), temperature (0.7), top_k (40)"
    ]
    source = save(tmp_path / "other", MistralConfig(**vars(SMALL) | {"eos_token_id": [2, 3]}))
    with pytest.warns(UserWarning, match=r"no place for eos_token_id \(\[2, 3\]\)$"):
        convert(source, tmp_path / "raw2", to="raw")


@pytest.mark.parametrize("fields", [{}, {"rms_norm_eps": 0.0}, {"tie_word_embeddings": True}])
def test_there_is_no_warning_if_no_field_is_lost(tmp_path, fields):  # a warning would be an error
    source = save(tmp_path / "hf", MistralConfig(**vars(SMALL) | fields))
    convert(source, tmp_path / "raw", to="raw")
    found = MistralConfig.from_pretrained(tmp_path / "raw").to_dict()
    assert found == MistralConfig.from_pretrained(source).to_dict() | {"dtype": "float32"}


def test_one_weight_at_a_time_is_in_memory(tmp_path):
    # wq, wo and the feed-forward matrices of each of four layers are half a megabyte or more.
    wide = MistralConfig(
        vocab_size=16,
        hidden_size=512,
        intermediate_size=300,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    save(tmp_path / "hf", wide, ml_dtypes.bfloat16)
    MistralTokenizer.from_pretrained(DEMO)  # what it imports is not counted
    tracemalloc.start()
    try:
        convert(tmp_path / "hf", tmp_path / "raw", to="raw")
        convert(tmp_path / "raw", tmp_path / "hf2", max_shard_size="1MB")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = 512 * 512 * 2
    assert largest < peak < 1.9 * largest
    assert (tmp_path / "hf2" / "model.safetensors.index.json").exists()


def test_progress_goes_from_zero_to_all_bytes(tmp_path, raw):
    seen = []
    convert(raw, tmp_path / "hf", progress=lambda *numbers: seen.append(numbers))
    sizes = [t.nbytes for t in read_tensors(FIXTURES / "models" / "no_window").values()]
    assert len(seen) == len(sizes)
    assert {total for _, total in seen} == {sum(sizes)}
    steps = np.diff([done for done, _ in seen] + [sum(sizes)])
    assert seen[0][0] == 0
    assert sorted(steps) == sorted(sizes)


def test_the_folder_is_made_beside_its_target_on_the_same_file_system(tmp_path, raw):
    seen = set()
    convert(
        raw,
        tmp_path / "a" / "hf",
        progress=lambda *_: seen.update(path.name for path in (tmp_path / "a").iterdir()),
    )
    assert len(seen) == 1
    assert seen.pop().startswith(".hf.unfinished-")


class Stop(BaseException):
    """Like Ctrl-C at a given moment."""


def fails_after(tensors: int):
    left = iter(range(tensors))

    def progress(done, total):
        if next(left, None) is None:
            raise Stop

    return progress


@pytest.mark.parametrize("tensors", [0, 1, 20])
@pytest.mark.parametrize("to", ["hf", "raw"])
def test_a_conversion_that_fails_leaves_nothing(tmp_path, tensors, to):
    source = save(tmp_path / "hf")
    if to == "hf":
        convert(tmp_path / "hf", tmp_path / "raw", to="raw")
        source = tmp_path / "raw"
    before = content_of(tmp_path)
    with pytest.raises(Stop):
        convert(source, tmp_path / "a" / "b", to=to, progress=fails_after(tensors))
    assert content_of(tmp_path) == before


def stop_at(monkeypatch, method: str, step: int) -> None:
    """Let a method of Path raise Stop, once, in place of its call number `step`."""
    calls = 0
    original = getattr(Path, method)

    def stops(path, *arguments, **options):
        nonlocal calls
        calls += 1
        if calls == step:
            raise Stop
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, method, stops)


def test_what_is_replaced_survives_any_failure(tmp_path, raw, monkeypatch):
    target = save(tmp_path / "target")
    before = content_of(tmp_path)
    with pytest.raises(Stop):
        convert(raw, target, force=True, progress=fails_after(5))
    assert content_of(tmp_path) == before
    for step in range(1, 4):  # the small files; the folder is not renamed, but exchanged
        with monkeypatch.context() as patch:
            stop_at(patch, "replace", step)
            with pytest.raises(Stop):
                convert(raw, target, force=True)
        assert content_of(tmp_path) == before
    convert(raw, target, force=True)
    assert MistralConfig.from_pretrained(target).vocab_size == 67
    assert not list(tmp_path.glob(".*"))


def test_ctrl_c_while_the_old_files_are_removed_leaves_them_to_the_next_run(
    tmp_path, raw, monkeypatch
):
    target = save(tmp_path / "target")
    unlink = Path.unlink

    def stops(path, **options):
        if path.name == "config.json":
            raise Stop
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stops)
        with pytest.raises(Stop):
            convert(raw, target, force=True)
    assert MistralConfig.from_pretrained(target).vocab_size == 67
    assert len(list(tmp_path.glob(".target.unfinished-*"))) == 1
    convert(raw, target, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "target"}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_the_folder_and_its_files_have_the_permissions_of_the_umask(tmp_path, raw):
    umask = os.umask(0o027)
    try:
        convert(raw, tmp_path / "a" / "hf")
    finally:
        os.umask(umask)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a" / "hf").iterdir()}
    assert modes == {0o640}
    for folder in (tmp_path / "a", tmp_path / "a" / "hf"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_an_empty_folder_is_filled_without_force(tmp_path, raw):
    (tmp_path / "hf").mkdir()
    convert(raw, tmp_path / "hf")
    assert (tmp_path / "hf" / "config.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege there")
def test_a_link_stays_a_link(tmp_path, raw):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "hf")
    convert(raw, tmp_path / "link")
    convert(raw, tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "hf" / "config.json").exists()
    assert len(list((tmp_path / "disk").iterdir())) == 1


def refuses(*arguments, **options) -> str:
    with pytest.raises(ValueError) as caught:
        convert(*arguments, **options)
    assert str(caught.value).isprintable()  # one line
    return str(caught.value)


def test_targets_whose_replacement_would_lose_data_are_refused(tmp_path, raw, monkeypatch):
    file, other, old = tmp_path / "file", tmp_path / "other", save(tmp_path / "old")
    file.write_text("x", "utf-8")
    other.mkdir()
    (other / "thesis").write_text("x", "utf-8")
    (tmp_path / "link").symlink_to(raw)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = content_of(tmp_path)
    for force in (False, True):
        for target in (raw, raw / "hf", raw / ".." / "raw" / "a" / "b", tmp_path, Path("/")):
            assert "input's own folder" in refuses(raw, target, force=force)
        assert "input's own folder" in refuses(raw, tmp_path / "link", force=force)
        assert "input's own folder" in refuses(tmp_path / "link", raw, force=force)
        assert "is a file" in refuses(raw, file, force=force)
        refuses(raw, file / "hf", force=force)
        refuses(raw, tmp_path / "loop", force=force)
    assert refuses(raw, old).endswith("old: is there already; give another folder, or --force")
    assert refuses(raw, other).endswith("other: is there already; give another folder")
    monkeypatch.chdir(old)
    assert "is in use" in refuses(raw, ".", force=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == other)
    assert "is in use" in refuses(raw, other, force=True)
    assert content_of(tmp_path) == before


def test_a_folder_with_anything_but_a_checkpoint_is_never_replaced(tmp_path, raw):
    """It is named, whatever else there is: a web project, for example, has a config.json too."""
    for path in ("index.html", ".git/HEAD", "README.md", "consolidated.00.pth", "config.json"):
        project = tmp_path / "project"
        save(project)
        (project / path).unlink(missing_ok=True)
        (project / path).parent.mkdir(exist_ok=True)
        (project / path).write_text("mine", "utf-8")
        before = content_of(tmp_path)
        if path == "config.json":  # its content is not looked at
            convert(raw, project, force=True)
            continue
        named = f"project: holds '{path.partition('/')[0]}', which no conversion wrote"
        assert named in refuses(raw, project, force=True)
        assert "--force" not in refuses(raw, project)
        assert content_of(tmp_path) == before
        shutil.rmtree(project)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege there")
def test_a_link_or_a_folder_with_the_name_of_a_weights_file_is_not_removed(tmp_path, raw):
    target = tmp_path / "target"
    target.mkdir()
    (target / "model.safetensors").symlink_to(raw / "params.json")
    assert "holds 'model.safetensors'" in refuses(raw, target, force=True)
    (target / "model.safetensors").unlink()
    (target / "model.safetensors").mkdir()
    assert "holds 'model.safetensors'" in refuses(raw, target, force=True)


# Two at once, and what appears while a conversion is at work


def once(function):
    """A `progress` that calls a function the first time."""
    calls = iter([function])
    return lambda done, total: next(calls, lambda: None)()


@pytest.mark.parametrize("force", [False, True])
def test_what_appears_meanwhile_is_left_as_it_is(tmp_path, raw, force):
    def appear() -> None:
        (tmp_path / "hf").mkdir()
        (tmp_path / "hf" / "thesis").write_text("mine", "utf-8")

    before = content_of(tmp_path)
    message = refuses(raw, tmp_path / "hf", force=force, progress=once(appear))
    assert message.endswith(
        "hf: something has appeared there meanwhile, and is left as it is; give another folder"
    )
    assert content_of(tmp_path) == before | {"hf": b"", "hf/thesis": b"mine"}


def test_what_appears_in_a_folder_that_is_replaced_stops_it(tmp_path, raw):
    target = save(tmp_path / "target")
    before = content_of(tmp_path)
    thesis = target / "thesis"
    message = refuses(
        raw, target, force=True, progress=once(lambda: thesis.write_text("mine", "utf-8"))
    )
    assert message.endswith(
        "target: has changed meanwhile, and is left as it is; give another folder"
    )
    assert content_of(tmp_path) == before | {"target/thesis": b"mine"}


@pytest.mark.skipif(os.name != "posix", reason="without locks the later one is refused")
@pytest.mark.parametrize("force", [False, True])
def test_of_two_conversions_into_one_folder_the_second_is_refused(tmp_path, raw, force):
    target, said = tmp_path / "target", []
    if force:
        save(target)
    convert(
        raw,
        target,
        force=force,
        progress=once(lambda: said.append(refuses(raw, target, force=force))),
    )
    assert said == [f"{target}: another process is writing to it; wait until that has ended"]
    assert MistralConfig.from_pretrained(target).vocab_size == 67
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "target"}


@pytest.mark.parametrize("force", [False, True])
def test_a_result_is_not_replaced_by_that_of_an_earlier_start(tmp_path, raw, monkeypatch, force):
    monkeypatch.setattr("tinymistral.files.fcntl", None)  # as on Windows
    target = tmp_path / "target"
    if force:
        save(target)
    monkeypatch.setattr("tinymistral.files.saving.leftovers", lambda path: [])  # as if both began
    first = once(lambda: convert(raw, target, force=force, max_shard_size="20KB"))
    assert "meanwhile, and is left as it is" in refuses(raw, target, force=force, progress=first)
    assert (target / "model.safetensors.index.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "target"}


@LOSES
def test_sources_that_cannot_be_converted_are_refused(tmp_path, raw):
    hf, empty, target = save(tmp_path / "hf"), tmp_path / "empty", tmp_path / "new"
    empty.mkdir()
    assert "is in Hugging Face's format already" in refuses(hf, target)
    assert "is raw already" in refuses(raw, target, to="raw")
    assert "empty holds no checkpoint" in refuses(empty, target)
    assert "empty holds no checkpoint" in refuses(empty, target, to="raw")
    assert "neither an existing folder" in refuses(tmp_path / "none", target)
    assert "expected 'hf' or 'raw'" in refuses(raw, target, to="gguf")
    assert "expected 1 byte or more" in refuses(raw, target, max_shard_size=0)
    (raw / "tokenizer.model").unlink()
    assert "has no tokenizer.model" in refuses(raw, target)
    # Both formats are there: it counts as Hugging Face's, as everywhere.
    shutil.copyfile(hf / "config.json", raw / "config.json")
    assert "already" in refuses(raw, target)
    # A head of another kind has no raw name, and would be lost.
    tied = MistralConfig(**vars(SMALL) | {"tie_word_embeddings": True})
    MistralForSequenceClassification(tied).save_pretrained(tmp_path / "classifier")
    assert "not expected: 'score.weight'" in refuses(tmp_path / "classifier", target, to="raw")
    assert not target.exists()


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("7B", 7_241_732_096),
        ("7.2b", 7_241_732_096),
        ("7241M", 7_241_732_096),
        ("260K", 234_000),
        ("260K", 286_000),
        ("292800", 292_800),
        (None, 5),
    ],
)
def test_sizes_that_fit(size, parameters):
    check_size(size, parameters)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("7B", 8_030_261_248), ("7B", 6_200_000_000), ("7M", 7_241_732_096), ("0B", 5)],
)
def test_sizes_that_do_not_fit(size, parameters):
    with pytest.raises(
        ValueError, match=f"{size} was given, but the checkpoint has {parameters:,}"
    ):
        check_size(size, parameters)


@pytest.mark.parametrize("size", ["", "B", "seven", "-7B", "7 B", "7BB", "٧B", "1e9", "9" * 5000])
def test_sizes_that_are_not_valid(size):
    with pytest.raises(ValueError, match="expected a number such as 7B"):
        check_size(size, 7_241_732_096)


def test_a_wrong_size_is_an_error_before_anything_is_written(tmp_path, raw):
    before = content_of(tmp_path)
    assert "7B was given" in refuses(raw, tmp_path / "hf", model_size="7B")
    assert content_of(tmp_path) == before
