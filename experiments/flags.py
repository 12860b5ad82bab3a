"""The flags that all experiments share, and the frame around their `main`."""

import ast
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from driftlab.suggestions import nearest
from driftlab.sweep import FolderError, Interrupted
from driftlab.sweep.launch import WHOLE, is_finished, parse_shard

if TYPE_CHECKING:
    import xarray

EXIT_ERROR = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the same command continues the run

OUT = flags.DEFINE_string(
    "out", None, "The run's folder. By default runs/NAME-HASH, one folder a config."
)
LEARNING_RATES = flags.DEFINE_string(
    "learning_rates",
    None,
    "Learning rates: start:stop:count (log-spaced) or a comma list. Overrides the config's.",
)
SEEDS = flags.DEFINE_string("seeds", None, "Seeds: how many, or a comma list.")
STEPS = flags.DEFINE_integer("steps", None, "Iterations of every lane.", lower_bound=1)
RECORD_EVERY = flags.DEFINE_integer("record_every", None, "Iterations a record.", lower_bound=1)
LANES = flags.DEFINE_string(
    "lanes", "auto", "Lanes that advance together on a device: auto, vmap, map or chunk:k."
)
SHARD = flags.DEFINE_string(
    "shard", "1/1", "k/n: run the k-th of n shares of the sweep; join them with driftlab merge."
)
DEVICES = flags.DEFINE_integer(
    "devices", None, "How many devices to use; all by default. On a CPU: how many to make of it.",
    lower_bound=1,
)  # fmt: skip
PLATFORM = flags.DEFINE_enum("platform", None, ["cpu", "gpu", "tpu"], "Where to run.")
X64 = flags.DEFINE_bool("x64", False, "Compute in 64 bits.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets that do not install.")
CHECKPOINT_SECONDS = flags.DEFINE_float(
    "checkpoint_seconds", 30.0, "Seconds between checkpoints.", lower_bound=0.0
)
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder of compiled programs kept between runs; by default in the user's cache folder; "
    "'none' switches it off.",
)
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error was raised.")


def define_config(default: str) -> Any:
    """Defines `--config` and its overrides `--config.field=value`.

    Args:
      default: the config file used when none is given.

    Returns:
      The flag's holder.
    """
    path = Path(__file__).parent.parent / "configs" / default
    try:
        return config_flags.DEFINE_config_file("config", str(path), "The config file.")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _refuse_config(error)  # ml_collections applies overrides of the default file at once


def run(main: Callable[[], None]) -> None:
    """Parses the flags, prepares JAX and runs an experiment.

    An error that says what to do about it ends the program with that message and exit code 2; a
    run that was interrupted and can be continued with 75.

    Args:
      main: the experiment.
    """

    def framed(arguments: Sequence[str]) -> None:
        try:
            if len(arguments) > 1:
                raise ValueError(
                    f"unexpected argument {arguments[1]!r}; flags are written --name=value."
                )
            if not flags.FLAGS["verbosity"].present:
                logging.set_verbosity(logging.WARNING)  # orbax reports every write
            _prepare_jax()
            main()
        except Interrupted as interrupted:
            print(interrupted, file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        except (ValueError, TypeError, ImportError, OSError, FolderError) as error:
            if TRACEBACK.value:
                traceback.print_exc()
            notes = "".join(
                f"\n  ({note})"
                for note in getattr(error, "__notes__", ())
                if "JAX has removed" not in note  # JAX's own, on the traceback that is not shown
            )
            name = Path(sys.argv[0]).stem
            print(f"{name}: {error}{notes}", file=sys.stderr)
            sys.exit(EXIT_ERROR)

    app.run(framed, flags_parser=_parse)


def _parse(arguments: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(arguments)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _refuse_config(error)


def _refuse_config(error: Exception) -> NoReturn:
    """Ends the program: a field that the config lacks, or a value of another type."""
    message = str(error.args[0] if error.args else repr(error))
    message = message.replace("\\'", "'").replace("\\n", " ").replace("'", "")
    print(f"{Path(sys.argv[0]).stem}: --config: {message}", file=sys.stderr)
    sys.exit(EXIT_ERROR)


def override(config: Any) -> Any:
    """The config with the shared flags that were given put in.

    Args:
      config: an `ml_collections.ConfigDict` with `learning_rates`, `seeds`, `steps`,
        `record_every`.

    Returns:
      The same config.
    """
    for flag in (LEARNING_RATES, SEEDS, STEPS, RECORD_EVERY):
        if flag.value is not None:
            config[flag.name] = flag.value
    return config


def as_json(config: Any) -> dict[str, Any]:
    """A config as a run's config.json holds it.

    Args:
      config: an `ml_collections.ConfigDict`.

    Returns:
      Its fields, in JSON's types.
    """
    return json.loads(config.to_json_best_effort())


def run_folder(config: Any, name: str) -> Path:
    """`--out`, or a folder of the experiment's name and the config's digest in `runs`.

    Args:
      config: the run's, with its overrides.
      name: the experiment's.

    Returns:
      The folder; it need not exist.
    """
    digest = hashlib.sha256(json.dumps(as_json(config), sort_keys=True).encode()).hexdigest()[:8]
    return Path(OUT.value or Path("runs") / f"{name}-{digest}")


def engine_options() -> dict[str, Any]:
    """How a sweep is run, as the flags say.

    Returns:
      `lanes`, `devices` and `checkpoint_seconds`, arguments of `driftlab.sweep`.
    """
    return {
        "lanes": LANES.value,
        "devices": DEVICES.value,
        "checkpoint_seconds": CHECKPOINT_SECONDS.value,
    }


def run_shard(sweep: Callable[..., "xarray.Dataset"], out: Path) -> "xarray.Dataset | None":
    """Runs `--shard` of a sweep in its folder, and says how the folder stands.

    Args:
      sweep: `sweep(out=, shard=, **engine_options())`, the experiment's.
      out: the run's folder.

    Returns:
      The whole dataset; None where only a part of it was run, and there is nothing to report.
    """
    finished = is_finished(out)
    shard = parse_shard(SHARD.value)
    dataset = sweep(out=out, shard=shard, **engine_options())
    if shard.count > 1:
        print(f"shard {shard} is done; when all are: driftlab merge {out} --out={out}-merged")
        return None
    announce(out, finished)
    return dataset


def refuse_shard() -> None:
    """Raises where `--shard` asks for a part of an experiment that is not split.

    Raises:
      ValueError: naming the flag.
    """
    if parse_shard(SHARD.value) != WHOLE:
        raise ValueError(f"--shard={SHARD.value}: this experiment is not split.")


def announce(out: Path, finished: bool) -> None:
    """Says that a run was there already, if it was.

    Args:
      out: its folder.
      finished: whether it had finished before the command began.
    """
    if finished:
        print(f"{out} holds this run, finished; its figures are drawn again.")


def parse_values(text: str, name: str, *, positive: bool = False) -> np.ndarray:
    """Reads the values of a numeric axis.

    Args:
      text: `start:stop:count` (log-spaced), `start:stop:count:linear`, or a comma list.
      name: the axis, for errors.
      positive: whether values must be positive.

    Returns:
      The values, `(count,)`.

    Raises:
      ValueError: saying what is wrong with which part.
    """
    forms = "start:stop:count (log-spaced), start:stop:count:linear, or a comma list"
    spacing = "log"
    if ":" in text:
        parts = text.split(":")
        if len(parts) == 4 and parts[3] in ("log", "linear"):
            spacing = parts.pop()
        if len(parts) != 3 or not all(part.strip() for part in parts):
            raise ValueError(f"{name}={text!r}: a range needs start, stop and count; give {forms}.")
        start, stop = (_number(part, name, text) for part in parts[:2])
        try:
            count = int(parts[2])
        except ValueError:
            raise ValueError(f"{name}={text!r}: count {parts[2]!r} is not an integer.") from None
        if count < 1:
            raise ValueError(f"{name}={text!r}: count must be at least 1.")
        if spacing == "log" and not (start > 0 and stop > 0):
            raise ValueError(
                f"{name}={text!r}: a log-spaced range needs positive ends; give {forms}."
            )
        if count > 1 and start == stop:
            raise ValueError(f"{name}={text!r}: start and stop are equal but count is {count}.")
        space = np.geomspace if spacing == "log" else np.linspace
        values = space(start, stop, count)
    else:
        if not text.strip():
            raise ValueError(f"{name} is empty; give {forms}.")
        values = np.array([_number(part, name, text) for part in text.split(",")])
    if positive and not (values > 0).all():
        raise ValueError(f"{name}={text!r}: every value must be positive.")
    return values


def parse_seeds(text: str | int) -> list[int]:
    """Reads seeds: a count n for `0 .. n-1`, or a comma list.

    Args:
      text: such as "4" or "3,5,7".

    Returns:
      The seeds.

    Raises:
      ValueError: if they are not non-negative integers, or none.
    """
    try:
        numbers = [int(part) for part in str(text).split(",")]
    except ValueError:
        numbers = [-1]
    single = len(numbers) == 1 and "," not in str(text)
    if min(numbers) < 0 or (single and numbers[0] == 0):
        raise ValueError(f"seeds={text!r}: give a positive count, or a comma list of integers.")
    return list(range(numbers[0])) if single else numbers


def parse_names(text: str, name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Reads some of the names that there are.

    Args:
      text: a comma list.
      name: the field of the config, for errors.
      known: what each may be.

    Returns:
      The names, in the list's order.

    Raises:
      ValueError: if there is none, or one is not known or given twice.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    known = tuple(known)
    if not names:
        raise ValueError(f"{name} is empty; give some of {', '.join(known)}.")
    for given in names:
        if given not in known:
            raise ValueError(f"{name}={text!r}: there is no {given!r}: {nearest(given, known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{name}={text!r} names one twice.")
    return names


def parse_arguments(text: str, name: str) -> dict[str, Any]:
    """Reads `key=value,key=value` with Python literals as values.

    Args:
      text: such as "momentum=0.9,nesterov=True"; empty for none.
      name: the flag, for errors.

    Returns:
      The arguments.

    Raises:
      ValueError: if the text is not of that form.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or None in (w.arg for w in call.keywords):
            raise SyntaxError("not a list of key=value")
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(
            f"{name}={text!r}: give key=value,key=value with Python literals, such as "
            "momentum=0.9,nesterov=True."
        ) from None


def _number(part: str, name: str, text: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise ValueError(f"{name}={text!r}: {part!r} is not a number.") from None


def _prepare_jax() -> None:
    """Applies the flags that JAX must know before it starts."""
    if PLATFORM.value:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(PLATFORM.value, PLATFORM.value))
    if DEVICES.value and PLATFORM.value in (None, "cpu"):
        # Devices made of one CPU share its cores. With an accelerator this changes nothing.
        jax.config.update("jax_num_cpu_devices", min(DEVICES.value, os.cpu_count() or 1))
    try:
        jax.devices()
    except RuntimeError as error:
        raise ValueError(
            f"--platform={PLATFORM.value}: JAX finds no such device ({error})."
        ) from None
    jax.config.update("jax_enable_x64", X64.value)
    folder = COMPILATION_CACHE.value
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = str(Path(base) / "driftlab" / "compiled")
    if folder != "none":
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
