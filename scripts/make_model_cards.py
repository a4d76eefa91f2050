"""Writes the model cards of the zoo, model_cards/NAME.md, from the table in `hf_deit.hub.zoo_cards` and the models.

python scripts/make_model_cards.py [FOLDER]
"""

import sys
from pathlib import Path

from hf_deit.hub.zoo_cards import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [str(Path(__file__).parents[1] / "model_cards")]))
