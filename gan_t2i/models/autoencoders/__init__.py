"""Autoencoders: the spaces that G draws in. One file each, registered as kind ``autoencoder``."""
