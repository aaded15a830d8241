"""Tasks: prompts with what is known about them, and the generators that draw them."""
