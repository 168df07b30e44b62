"""How the next emission is drawn from a model's logits."""
