"""Model cards in the hub's format: what a run, a merged model or a LoRA folder is, and how to load it. No torch."""

from frostline.model_card._about import ModelCard
from frostline.model_card._card import card_text
from frostline.model_card._code import Use
from frostline.model_card._licence import Licence, licence_of
from frostline.model_card._readme import OWN_README, README_FILE, write_readme

__all__ = ["OWN_README", "README_FILE", "Licence", "ModelCard", "Use", "card_text", "licence_of", "write_readme"]
