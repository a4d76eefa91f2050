# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "accelerate>=1.15",
#   "datasets>=5.2",
#   "evaluate>=0.4.6",
#   "filelock>=3.20",
#   "httpx2>=2.16",
#   "huggingface-hub>=2.4",
#   "jinja2>=3.1",
#   "matplotlib>=3.10",
#   "numpy>=2.2",
#   "onnx>=1.23",
#   "onnxruntime>=1.23",
#   "onnxscript>=0.7.2",
#   "pillow>=12,<13",
#   "psutil>=7.0",
#   "pyarrow>=24",
#   "pyyaml>=6.0.3",
#   "safetensors>=0.8",
#   "scikit-learn>=1.7",
#   "scipy>=1.14",
#   "timm>=1.0.31",
#   "torch>=2.11",
#   "torchvision>=0.26",
#   "transformers>=5.23,<6",
# ]
#
# [tool.hf-jobs]
# flavor = "l4x1"
# timeout = "6h"
# secrets = ["HF_TOKEN"]
# ///
"""`hf-deit distil` on a rented GPU, by `hf jobs uv run`; see hf_deit/commands/distilling/README.md.

    hf jobs uv run --flavor l4x1 --timeout 6h --secrets HF_TOKEN -v ./images:/images \
        --with "hf_deit[export] @ git+ADDRESS_OF_THIS_REPOSITORY" \
        scripts/distil_on_jobs.py /images --output_dir /tmp/pets --hub_model_id my-name/pets
"""

import sys

try:
    from hf_deit.commands.command_line import exit_command
    from hf_deit.commands.main import main as hf_deit
except ImportError:
    sys.exit(
        "error: hf_deit is not installed, and lies on no index under this name: give uv, or hf jobs uv run, "
        '--with "hf_deit[export] @ git+https://…", the address of its repository'
    )


def main(arguments: list[str]) -> int:
    return hf_deit(["distil", *arguments])


if __name__ == "__main__":
    exit_command(main(sys.argv[1:]))
