"""The Instruct format: "official" compared with mistral-common, "hf" with transformers' ids."""

import importlib.resources
import json
from functools import cache
from pathlib import Path

import pytest
from goldens import DEMO, read_json
from hypothesis import given
from hypothesis import strategies as st
from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as MistralCommonTokenizer

from tinymistral.chat import user_turn
from tinymistral.tokenizer import MistralTokenizer

DATA = Path(str(importlib.resources.files("mistral_common") / "data"))
FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
}
every_version = pytest.mark.parametrize("version", ["v1", "v2", "v3"])

# Spaces at both ends, and what would be a control token if it were not typed.
contents = st.text() | st.lists(
    st.sampled_from([*" \n\taé日🙂▁]", "[INST]", "[/INST]", "</s>", "<s>", " [/INST]</s>"])
).map("".join)
CONTROL = {"<s>", "</s>", "[INST]", "[/INST]"}


@cache
def tokenizer_of(version: str) -> MistralTokenizer:
    return MistralTokenizer(DATA / FILES[version])


@cache
def mistral_common(version: str, mode: ValidationMode) -> MistralCommonTokenizer:
    return MistralCommonTokenizer.from_file(str(DATA / FILES[version]), mode)


def mistral_common_ids(version: str, messages: list[dict]) -> list[int] | None:
    """Ids of mistral-common, None where it refuses; what ends with </s> is for fine-tuning."""
    ended = messages[-1]["role"] == "assistant" and not messages[-1].get("prefix")
    mode = ValidationMode.finetuning if ended else ValidationMode.test
    try:
        request = ChatCompletionRequest(messages=messages)
        return mistral_common(version, mode).encode_chat_completion(request).tokens
    except MistralCommonException:
        return None


def conversation(*texts: str, system: str | None = None) -> list[dict]:
    """The user's, the assistant's, the user's ... text, after the system prompt."""
    roles = ("user", "assistant") * len(texts)
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": r, "content": c} for r, c in zip(roles, texts, strict=False)]


@st.composite
def conversations(draw: st.DrawFn, no_empty_answer: bool = True) -> list[dict]:
    """Of one to four user turns, the last one answered or not, with a system prompt or not."""
    texts = draw(st.lists(contents, min_size=1, max_size=8))
    if no_empty_answer:
        texts = [text or "b" if i % 2 else text for i, text in enumerate(texts)]
    return conversation(*texts, system=draw(st.none() | contents))


@st.composite
def messages_in_any_order(draw: st.DrawFn) -> list[dict]:
    """Of any role, a text or text parts, a prefix here and there.

    No empty text of an assistant's: it is refused here, and by mistral-common unless it is a part
    and stands beside others.
    """
    messages = []
    for role in draw(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1)):
        texts = contents.filter(bool) if role == "assistant" else contents
        parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}))
        messages.append({"role": role, "content": draw(texts | parts)})
        if role == "assistant" and draw(st.integers(0, 9)) == 0:
            messages[-1]["prefix"] = True
    return messages


# ---- examples


@pytest.mark.parametrize(
    ("messages", "ids"),  # mistral-common's InstructTokenizerV1 gave them
    [
        (
            conversation("a", "b", "c", "d"),
            [
                *[1, 733, 16289, 28793, 264, 733, 28748, 16289, 28793, 287, 2],
                *[733, 16289, 28793, 277, 733, 28748, 16289, 28793, 281, 2],
            ],
        ),
        (
            conversation("a", system="SYSTEM"),
            [1, 733, 16289, 28793, 17121, 22526, 13, 13, 28708, 733, 28748, 16289, 28793],
        ),
    ],
)
def test_known_ids_of_v1(messages: list[dict], ids: list[int]) -> None:
    tokenizer = tokenizer_of("v1")
    assert tokenizer.apply_chat_template(messages) == ids
    assert tokenizer.apply_chat_template(messages, "official") == ids


def ids_or_none(version: str, messages: list[dict], *format: str, **options) -> list[int] | None:
    try:
        return tokenizer_of(version).apply_chat_template(messages, *format, **options)
    except ValueError as error:
        assert str(error).startswith("messages")
        return None


@pytest.mark.parametrize("entry", read_json("chat.json"))
def test_hf_ids_are_those_of_transformers(entry: dict) -> None:
    options = {"continue_final_message": entry["continue_final_message"]}
    assert ids_or_none("v1", entry["messages"], "hf", **options) == entry["ids"]


@every_version
@pytest.mark.parametrize("entry", read_json("official_chat.json"), ids=lambda entry: entry["case"])
def test_official_ids_of_messages_that_do_not_alternate(version: str, entry: dict) -> None:
    assert ids_or_none(version, entry["messages"]) == entry[version]


def test_the_two_formats_differ_after_the_assistant_s_turn() -> None:
    hf = tokenizer_of("v1").apply_chat_template(conversation("a", "b", "c"), "hf")
    start = [1, 733, 16289, 28793, 264, 733, 28748, 16289, 28793]
    assert hf == [*start, 28726, 2, 28705, 733, 16289, 28793, 277, 733, 28748, 16289, 28793]


def test_any_vocabulary_with_the_two_control_tokens_will_do() -> None:
    tokenizer = MistralTokenizer(DEMO / "tokenizer.model")
    ids = tokenizer.apply_chat_template(conversation("a", "b"))
    assert tokenizer.decode(ids) == "<s> [INST] a [/INST] b</s>"


# ---- laws


@every_version
@given(messages=conversations() | messages_in_any_order())
def test_official_ids_are_those_of_mistral_common(version: str, messages: list[dict]) -> None:
    assert ids_or_none(version, messages) == mistral_common_ids(version, messages)


@every_version
@given(messages=conversations())
def test_a_turn_to_be_continued_is_mistral_common_s_prefix(
    version: str, messages: list[dict]
) -> None:
    if messages[-1]["role"] != "assistant":
        messages = [*messages, {"role": "assistant", "content": "b "}]
    ids = tokenizer_of(version).apply_chat_template(messages, continue_final_message=True)
    assert ids == mistral_common_ids(version, [*messages[:-1], messages[-1] | {"prefix": True}])


@every_version
@given(messages=conversations())
def test_a_prompt_for_a_reply_has_the_same_ids(version: str, messages: list[dict]) -> None:
    if messages[-1]["role"] != "user":
        messages = messages[:-1]
    tokenizer = tokenizer_of(version)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert ids == tokenizer.apply_chat_template(messages)


@pytest.mark.parametrize(
    ("version", "format"), [("v1", "hf"), *[(v, "official") for v in ("v1", "v2", "v3")]]
)
@given(data=st.data())
def test_control_tokens_come_from_the_turns_alone(version: str, format: str, data) -> None:
    messages = data.draw(conversations(no_empty_answer=format == "official"))
    if format == "hf":
        messages = [message for message in messages if message["role"] != "system"]
    tokenizer = tokenizer_of(version)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.apply_chat_template(messages, format))
    expected = ["<s>"]
    for message in messages:
        if message["role"] == "user" and version != "v1":
            expected += ["[INST]", "[/INST]"]
        elif message["role"] == "assistant":
            expected += ["</s>"]
    assert [piece for piece in pieces if piece in CONTROL] == expected


@every_version
@given(messages=conversations())
def test_turns_one_by_one_give_the_conversation(version: str, messages: list[dict]) -> None:
    tokenizer = tokenizer_of(version)
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = messages[system is not None :]
    last_user = (len(turns) - 1) // 2 * 2
    ids: list[int] = []
    for i, turn in enumerate(turns):
        if turn["role"] == "user":
            its = system if i == (0 if version == "v1" else last_user) else None
            ids += user_turn(tokenizer, turn["content"], its, first=i == 0)
        else:
            text = turn["content"] if version == "v1" else turn["content"].rstrip(" ")
            ids += [*tokenizer.encode(text, add_special_tokens=False), 2]
    assert ids == mistral_common_ids(version, messages)


# ---- errors


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages is None"),
        ("Hello", r"messages is 'Hello' \(str\), expected a list"),
        ({"role": "user", "content": "a"}, r"messages is \{.*expected a list"),
        ([], "messages holds no message, expected one of the user's"),
        (["a"], r"messages\[0\] is 'a' \(str\), expected a role and a content"),
        ([conversation("a")], r"messages\[0\] is \[.*one conversation at a time"),
        ([{"content": "a"}], r"messages\[0\] has no 'role'"),
        ([{"role": "user"}], r"messages\[0\] \(user\) has no 'content'"),
        ([{"role": "user", "content": None}], r"messages\[0\] \(user\) has no 'content'"),
        (
            [*conversation("a"), {"role": "tool", "content": "b"}],
            r"messages\[1\] .*role 'tool'.*tools are not supported",
        ),
        ([{"role": ["user"], "content": "a"}], r"messages\[0\] has the role \['user'\]"),
        ([{"role": "user", "content": 7}], r"messages\[0\] \(user\): a text is 7 \(int\)"),
        ([{"role": "user", "content": ["a"]}], r"messages\[0\] \(user\): a part is 'a' \(str\)"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a", "b": 1}]}],
            r"messages\[0\] \(user\): a part is \{.*, expected a type and a text alone",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "a"}]}],
            r"messages\[0\] \(user\): .*type 'image_url'.*images and sounds are not supported",
        ),
        (conversation("a", "b\ud800"), r"messages\[1\] \(assistant\): letter 1 .*surrogate"),
        (conversation("a", ""), r"messages\[1\] \(assistant\) is empty"),
        (conversation("a", "", system="s"), r"messages\[2\] \(assistant\) is empty"),
        ([{"role": "assistant", "content": "a"}], "one message, the assistant's"),
        (
            [*conversation("a", "b"), *conversation("c", system="s")],
            r"messages\[2\] \(system\) comes after an assistant's",
        ),
        (
            [*conversation("a"), {"role": "assistant", "content": "b", "prefix": True}] * 2,
            r"messages\[1\] \(assistant\) has the prefix True.* last message alone",
        ),
        (
            [*conversation("a"), {"role": "assistant", "content": "b", "prefix": "yes"}],
            r"messages\[1\] \(assistant\) has the prefix 'yes'.*expected True",
        ),
        (
            [{"role": "user", "content": "a", "prefix": True}],
            r"messages\[0\] \(user\) has the prefix True.*an assistant's",
        ),
        (
            [*conversation("a"), {"role": "assistant", "content": None, "tool_calls": [{}]}],
            r"messages\[1\] \(assistant\) has 'tool_calls' too.*not supported",
        ),
        (
            [{"role": "user", "content": "a", "tool_calls": [{"id": 1}]}],
            r"messages\[0\] \(user\) has 'tool_calls' too",
        ),
    ],
)
def test_a_wrong_conversation_is_one_line_that_names_the_turn(messages, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        tokenizer_of("v1").apply_chat_template(messages)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c(conversation("a"), "v1"), "format is 'v1'.*'official', 'hf'"),
        (lambda c: c(conversation("a"), tokenize=False), "tokenize is False.* only ids"),
        (
            lambda c: c(conversation("a", "b"), add_generation_prompt=True),
            r"messages\[1\] is the assistant's, but a reply is wanted",
        ),
        (
            lambda c: c(conversation("a", "b", "c"), continue_final_message=True),
            r"messages\[2\] is the user's, expected an assistant's to be continued",
        ),
        (
            lambda c: c(conversation("a"), add_generation_prompt=True, continue_final_message=True),
            "give one, not both",
        ),
        (
            lambda c: c(
                [{**m, "prefix": True} for m in conversation("a", "b")[1:]],
                add_generation_prompt=True,
            ),
            r"messages\[0\] is the assistant's, but a reply is wanted",
        ),
        (lambda c: c(conversation("a"), tools=[{}]), "tools: .* not supported"),
        (
            lambda c: c(conversation("a", system=""), "hf"),
            r"messages\[0\] has the role 'system'.*'hf'.* no system prompt",
        ),
        (
            lambda c: c([*conversation("a"), *conversation("b")], "hf"),
            r"messages\[1\] has the role 'user'.* alternate",
        ),
        (
            lambda c: c([{"role": "user", "content": []}], "hf"),
            r"messages\[0\] has a list of parts .*'hf' .*give a text",
        ),
        (
            lambda c: c(
                [*conversation("a"), {"role": "assistant", "content": "b", "prefix": True}], "hf"
            ),
            r"messages\[1\] has a prefix, .*'hf'.*give continue_final_message",
        ),
    ],
)
def test_a_wrong_argument_is_one_line(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call(tokenizer_of("v1").apply_chat_template)
    assert "\n" not in str(error.value)


def test_keys_without_a_value_are_not_there() -> None:
    messages = [{"role": "user", "content": "a", "tool_calls": None, "name": None}]
    tokenizer = tokenizer_of("v1")
    assert tokenizer.apply_chat_template(messages) == mistral_common_ids("v1", conversation("a"))


def test_a_vocabulary_of_another_chat_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[SYSTEM_PROMPT\].*not supported"):
        tokenizer_of("v7").apply_chat_template(conversation("a"))
    with pytest.raises(ValueError, match=r"'hf' is for .* v0\.1 and v0\.2.*take 'official'"):
        tokenizer_of("v3").apply_chat_template(conversation("a"), "hf")


def test_a_system_prompt_after_the_first_turn_of_v1_is_refused() -> None:
    with pytest.raises(ValueError, match="before the first user turn"):
        user_turn(tokenizer_of("v1"), "a", "system", first=False)
    with pytest.raises(ValueError, match="a text is 7"):
        user_turn(tokenizer_of("v1"), 7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a text is 7"):
        user_turn(tokenizer_of("v1"), "a", 7)  # type: ignore[arg-type]


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>{% endfor %}"
ZEPHYR = "{% for m in messages %}<|{{ m.role }}|>\\n{{ m.content }}</s>{% endfor %}"
MISTRAL = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"


@pytest.mark.parametrize("in_a_file_of_its_own", [False, True])
@pytest.mark.parametrize(
    ("template", "fits"),
    [
        (CHATML, False),
        (ZEPHYR, False),
        (MISTRAL, True),
        ([{"name": "a", "template": ZEPHYR}], False),
    ],
)
def test_a_template_of_another_format_is_refused(tmp_path, template, fits, in_a_file_of_its_own):
    (tmp_path / "tokenizer.model").write_bytes((DATA / FILES["v1"]).read_bytes())
    if in_a_file_of_its_own:
        (tmp_path / "chat_template.jinja").write_text(str(template), encoding="utf-8")
        template = None
    settings = json.dumps({"chat_template": template})
    (tmp_path / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    tokenizer = MistralTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "a"}]
    ids = [1, 733, 16289, 28793, 264, 733, 28748, 16289, 28793]  # mistral-common's
    for format in ("official", "hf"):
        if fits:
            assert tokenizer.apply_chat_template(messages, format) == ids
        else:
            with pytest.raises(ValueError, match="chat template is not Mistral's"):
                tokenizer.apply_chat_template(messages, format)
    if not fits:
        with pytest.raises(ValueError, match="chat template is not Mistral's"):
            user_turn(tokenizer, "a")
