"""Train or evaluate a plain or a distilled detector, with Detectron2's usual command line."""

from aid_d2.engine import run

if __name__ == "__main__":
    run()
