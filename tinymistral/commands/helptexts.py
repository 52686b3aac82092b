"""What `--help` says beside the options, in at most 79 columns."""

DESCRIPTION = """\
Mistral in readable NumPy.

  tinymistral generate "Once upon a time"
      tells a story, with the small demo model that comes with the package
  tinymistral generate --model mistralai/Mistral-7B-v0.1 "My name is"
      opens a checkpoint: a folder in Hugging Face format, or a model's name on
      the Hugging Face hub, if it has been downloaded
  tinymistral tokenize "Once upon a time"
      shows how a text is cut into tokens

`python -m tinymistral` is the same as `tinymistral`. All text is UTF-8.
"""

GENERATE = """\
Continue a text, and print it as it comes.

  tinymistral generate "Once upon a time" --seed 7
  tinymistral generate --model FOLDER --greedy --prompt-file letter.txt
  echo "The King said" | tinymistral generate --stop "." --json

The defaults stated below are for a model that does not bring its own in
generation_config.json. The demo model does: it samples, with temperature 0.7
and top-k 40.
"""

GENERATE_END = """\
--json prints one object, on one line:
  text, ids           prompt and continuation
  prompt, prompt_ids
  continuation        without the stop text
  continuation_ids    all that were generated, of the stop text and </s> too
  logprobs            for each of them: the natural logarithm of the
                      probability that the model itself gives it
  finish_reason       "length", "eos" (the model ended the text) or "stop"
  seed                null where nothing is drawn
  counts              prompt_tokens, new_tokens
  timings             load_seconds, prefill_seconds (to the first new token),
                      decode_seconds (from there to the last)

Exit codes: 0; 2 for a mistake in what was given; 130 after Ctrl-C, which
leaves the text so far.
"""

TOKENIZE = """\
Print the id and the piece of every token of a text, one token a line. In a
piece '\u2581' is a space, and <0x0A> a byte. Or turn ids back into text.

  tinymistral tokenize "Once upon a time"
  tinymistral tokenize --decode 1734 661 261 511
  tinymistral tokenize "Hi" | awk '{print $1}' | tinymistral tokenize --decode
"""
