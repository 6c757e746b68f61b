"""``python -m scripts.explain --output explain.png``."""

from __future__ import annotations

from pathlib import Path

import fire

from .picture import draw


def explain(output: str = "explain.png") -> None:
    """Draw how the method works, on data whose networks are known exactly.

    Args:
        output: path of the PNG; its folder is made.
    """
    path = Path(str(output))  # fire takes 2024 for a number
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(path)
    print(f"{path}: how guided diffusion finds a lesion, in five panels")


if __name__ == "__main__":
    fire.Fire(explain)
