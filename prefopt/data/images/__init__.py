"""Images in prompts: where rows name them, which files they are, and what a model's processor makes of them."""
