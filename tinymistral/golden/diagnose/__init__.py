"""Finding the mistake: what each would compute, and which of them fits what is given."""
