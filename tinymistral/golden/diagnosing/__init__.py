"""Finding the mistake: the suspects, what each would compute, and which of them fits."""
