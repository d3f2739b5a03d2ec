"""A recipe's `trainer.logger`: figures shown elsewhere, beside the run's own tables."""

from pathlib import Path
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.loggers import Logger

from zoo.errors import UserError, nearest

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def create_logger(chosen: Any, folder: Path | None) -> Logger | bool:
    """Lightning's logger of that name with its options; False where none is chosen.

    chosen: {"name": "tensorboard", "wandb" or "mlflow", option: value}, options being those of Lightning's class.
    folder: the run's, below which all of them write (`tensorboard/`, `wandb/`, `mlruns/`) unless an option says
    otherwise; None = another process writes. Raises UserError for an unknown name or option and a missing package.
    """
    if not chosen:
        return False
    spec = chosen if isinstance(chosen, dict) else {"name": chosen}
    name, options = spec.get("name"), {key: value for key, value in spec.items() if key != "name"}
    if not isinstance(name, str) or name not in PACKAGES:
        raise UserError(
            f"There is no logger {name!r}{nearest(str(name), PACKAGES) or '.'} Loggers: {', '.join(PACKAGES)}; null ="
            " the run's own tables alone."
        )
    if not folder:
        return False
    run = f"{folder.parent.name}/{folder.name}"
    try:
        if name == "tensorboard":
            own = {"save_dir": folder, "name": "", "version": "tensorboard", "default_hp_metric": False}
            return loggers.TensorBoardLogger(**{**own, **options})
        if name == "wandb":
            return loggers.WandbLogger(**{"save_dir": folder, "name": run, "project": "visionzoo", **options})
        return loggers.MLFlowLogger(
            **{"save_dir": str(folder / "mlruns"), "experiment_name": "visionzoo", "run_name": run, **options}
        )
    except ModuleNotFoundError:
        raise UserError(
            f"trainer.logger is {name}, whose package is not installed: pip install {PACKAGES[name]}"
        ) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"The logger {name!r} does not take {options}: {error}.") from None
