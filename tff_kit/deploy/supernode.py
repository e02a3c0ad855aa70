"""The program of a node's SuperNode: Flower's, which runs no app but the installed one."""

from tff_kit.deploy.engine import run_supernode

if __name__ == "__main__":
    run_supernode()
