"""``python -m deepfusion`` is ``deepfusion``."""

from deepfusion.cli import main

if __name__ == "__main__":
    main()
