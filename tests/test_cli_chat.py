"""`tinymistral chat` and `generate --chat`, over a pipe; the answers are tested elsewhere."""

import json
from pathlib import Path

from cli_runner import generated, refused, run

BASE = "tinymistral: warning: this seems to be a base model"
FEW = ("--max-new-tokens", "12", "--greedy")


def talk(*lines: str, options: tuple[str, ...] = FEW) -> tuple[list[str], list[str]]:
    code, out, err = run("chat", *options, stdin="".join(f"{x}\n" for x in lines).encode("utf-8"))
    assert code == 0
    notes = err.splitlines()
    assert notes[0].startswith(BASE)
    return out, notes[1:]


def test_each_line_is_answered() -> None:
    one, notes = talk("Who are you?")
    assert one.endswith("\n") and not notes
    two, _ = talk("Who are you?", "And who is he?")
    assert two.startswith(one)
    assert len(two) > len(one)


def test_a_conversation_begins_again_on_reset() -> None:
    one, _ = talk("Who are you?")
    assert talk("Who are you?", "/reset", "Who are you?")[0] == one + one
    notes = talk("Who are you?", "/stats", "Who are you?", "/stats", "/reset", "/stats")[1]
    assert notes.pop(2) == "a new conversation, no system prompt"
    tokens = [int(line.split()[0]) for line in notes]
    assert tokens[0] < tokens[1]
    assert tokens[2] == 0


def test_a_system_prompt_can_be_given_either_way() -> None:
    given, _ = talk("Who are you?", options=(*FEW, "--system", "You are a fox."))
    set_later, notes = talk("/system You are a fox.", "Who are you?", "/reset")
    assert given == set_later
    assert notes == ["a new conversation, with the system prompt: You are a fox."] * 2
    assert given == talk("\ufeff/system\tYou are a fox.", "Who are you?")[0]
    assert given != talk("Who are you?")[0]
    assert talk("/system You are a fox.", "/system", "Who are you?")[0] == talk("Who are you?")[0]


def test_messages_are_saved(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    out, notes = talk("Wer bist „Du“?", f"/save {file}")
    messages = json.loads(file.read_text("utf-8"))["messages"]
    assert messages[0] == {"role": "user", "content": "Wer bist „Du“?"}
    assert messages[1] == {"role": "assistant", "content": out.removesuffix("\n")}
    assert notes == [f"saved 2 messages in {file}"]
    assert talk("Hi", f"/save {tmp_path}/none/talk.json")[1][0].startswith("not saved in")
    assert talk("Hi", f"/save {tmp_path / ('x' * 300)}")[1][0].startswith("not saved in")
    # Nobody can be asked.
    kept = f"not saved in {file}: it is there already; give another name"
    assert talk(f"/save {file}", "y")[1] == [kept]
    assert json.loads(file.read_text("utf-8"))["messages"] == messages


def test_a_message_from_a_pipe_may_be_one_that_ends_the_program_at_a_terminal() -> None:
    assert talk("exit")[0].strip()
    assert talk("/quit", "exit")[0] == ""


def test_commands_say_what_they_do() -> None:
    assert talk("/save")[1] == ["/save: expected a file, such as /save talk.json"]
    _, notes = talk("Hi", "/stats", "/what", "/", "/help", "/quit", "Hi")
    assert "12 tokens" in notes[0]
    assert notes[1].startswith("/what: expected /reset,")
    assert notes[2].startswith("/: expected /reset,")
    assert "While talking:" in notes[3]


def test_a_line_that_never_ends_is_an_error() -> None:
    code, out, err = run("chat", stdin=b"a" * (10**7 + 1))
    assert (code, out) == (2, "")
    assert err.endswith(
        "error: a line of standard input is over 10000000 bytes; expected a shorter text\n"
    )


def test_one_message_is_answered_by_generate() -> None:
    code, out, err = run("generate", "--chat", *FEW, "Who are you?")
    assert (code, err[: len(BASE)]) == (0, BASE)
    assert out == talk("Who are you?")[0]
    code, out, _ = run("generate", "--chat", "--json", *FEW, "Who are you?")
    result = json.loads(out)
    assert result["prompt"] == "Who are you?"
    assert result["text"] == result["continuation"]
    assert result["prompt_ids"] != generated("Who are you?", *FEW)["prompt_ids"]
    assert "--chat" in refused("generate", "--system", "Be brief.", "Hi")
