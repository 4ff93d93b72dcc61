"""Every loss of the game: adversarial losses, penalties on D's slope, and the registered auxiliary terms in `terms/`."""
