"""Mistral in readable NumPy.

  tinymistral generate "Once upon a time"
      writes a story, with the small demo model that comes with the package
  tinymistral generate --model mistralai/Mistral-7B-v0.1 "My name is"
      opens a checkpoint: a folder in Hugging Face format, or a model's name on
      the Hugging Face hub, if it has been downloaded
  tinymistral tokenize "Once upon a time"
      shows the tokens of a text

`python -m tinymistral` is the same as `tinymistral`. All text is UTF-8; on a
terminal control characters are shown as symbols.
"""

COMMANDS = (
    "generate",
    "chat",
    "score",
    "explain",
    "convert",
    "tokenize",
    "train",
    "grade",
    "bench",
    "backends",
    "golden",
)
