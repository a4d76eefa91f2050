"""Writes the model cards of the zoo: python scripts/make_model_cards.py [FOLDER]; by default into model_cards."""

import sys
from pathlib import Path

from hf_deit.hub.zoo_cards import write_cards


def main(arguments: list[str]) -> int:
    folder = arguments[0] if arguments else Path(__file__).parents[1] / "model_cards"
    print(f"{write_cards(folder)} cards written to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
