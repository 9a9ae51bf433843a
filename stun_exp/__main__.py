"""The command `stun`, as `python -m stun_exp`."""

from stun_exp.cli.entry import stun

if __name__ == "__main__":
    stun()
