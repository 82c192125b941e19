"""Train or evaluate a plain or a distilled detector, with Detectron2's usual command line."""

import sys

from aid_d2.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
