"""`python -m hf_deit` is `hf-deit`, also for `accelerate launch -m hf_deit`."""

from .commands.main import run

if __name__ == "__main__":
    run()
