"""Which of several processes of one command this is, told before they have found each other."""

import os


def is_first() -> bool:
    """Whether this is the process that writes and speaks: no launcher (torchrun, SLURM, Lightning) gave it a rank."""
    return not any(int(os.environ.get(key) or 0) for key in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"))
